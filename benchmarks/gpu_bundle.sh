#!/bin/sh
# Gathers what gpu.py needs on a GPU machine without a network: wheels in benchmarks/gpu_wheels, well under 60 MB. The machine has
# torch, transformers, peft, accelerate and the usual scientific packages of its own (scipy, pandas, pyarrow, rich, typer, jinja2).
# Carry the repository with that folder there and run the command that this prints at its end.
#
# usage: benchmarks/gpu_bundle.sh [PYTHON_VERSION [PACKAGE ...]]   (default 3.12; packages that the machine lacks, too)
set -eu
cd "$(dirname "$0")/.."
version=${1:-3.12}
[ $# -eq 0 ] || shift
python=${PYTHON:-.venv/bin/python}
wheels=benchmarks/gpu_wheels
rm -rf "$wheels"
mkdir "$wheels"
pinned() { # name==version, from constraints.txt where it is there
  found=$(sed -n "s/^\($1==[^ ;]*\).*/\1/p" constraints.txt | head -n 1)
  echo "${found:-$1}"
}
set -- pydantic pydantic_core annotated-types typing-inspection typing_extensions hjson py-cpuinfo einops \
  datasets dill multiprocess trl liger-kernel "$@"
for name in "$@"; do
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any \
    -d "$wheels" "$(pinned "$name")"
done
# DeepSpeed has no wheels. This one compiles nothing: its operators are built when they are asked for.
DS_BUILD_OPS=0 "$python" -m pip wheel --quiet --no-deps --no-build-isolation -w "$wheels" "$(pinned deepspeed)"
du -sh "$wheels"
cat <<END
there, in the repository:
  python3 -m pip install -q --no-index --no-deps --target /tmp/site $wheels/*.whl &&
  PYTHONPATH=.:/tmp/site python3 benchmarks/gpu.py --out /tmp/gpu
END
