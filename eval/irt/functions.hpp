// Functions of `model.stan` that run over all cells and all ratings, with derivatives by hand. Stan's own build a node of
// the expression graph per value and operation; here there is one per call. Every overload is no template, so that the
// compiler prefers it to what stanc declares. Compiles with Stan Math 4.1 (CmdStan 2.27) and later.
#include <stan/model/model_header.hpp>
#include <algorithm>
#include <cmath>
#include <numeric>
#include <ostream>
#include <vector>

namespace model_model_namespace {
namespace by_hand {

using stan::math::value_of;
using stan::math::var;
using stan::math::vari;
template <typename T>
using Vector = Eigen::Matrix<T, Eigen::Dynamic, 1>;
template <typename T>
using Kept = stan::math::arena_matrix<Vector<T>>; // until the gradient is known
using Array = Eigen::ArrayXd;
using Ints = std::vector<int>;
using Reals = std::vector<double>;

template <typename T>
T* arena(size_t n) {
  return stan::math::ChainableStack::instance_->memalloc_.template alloc_array<T>(n);
}

// Effects from their partly centred form: z ~ normal(0, 1) of each, from raw ~ normal(centre * middle, spread ^ centre).
struct Effects {
  Array middle, scale, z; // scale = spread ^ centre
  double log_prior = 0;
};

inline Effects effects(const Array& middle, const Array& raw, const Array& spread, const Ints& kind, const Reals& centre) {
  Effects found{middle, Array(), Array()};
  if (raw.size() == 0) {
    return found;
  }
  const Array log_spread = spread.log();
  Array share(raw.size()), log_scale(raw.size());
  for (Eigen::Index i = 0; i < raw.size(); ++i) {
    share[i] = centre[i];
    log_scale[i] = centre[i] * log_spread[kind[i] - 1];
  }
  found.scale = log_scale.exp();
  found.z = (raw - share * middle) / found.scale;
  found.log_prior = -0.5 * found.z.square().sum() - log_scale.sum();
  return found;
}

template <typename T>
Array middles(const Vector<T>& level, const Ints& at, const Vector<T>& less, const Ints& less_at, const Vector<T>& more) {
  Array middle(at.size());
  for (size_t i = 0; i < at.size(); ++i) {
    middle[i] = value_of(level.coeff(at[i] - 1));
    if (less.size() > 0) {
      middle[i] -= value_of(less.coeff(less_at[i] - 1));
    }
    if (more.size() > 0) {
      middle[i] += value_of(more.coeff(i));
    }
  }
  return middle;
}

template <typename T>
Array values(const Vector<T>& x) {
  Array found(x.size());
  for (Eigen::Index i = 0; i < x.size(); ++i) {
    found[i] = value_of(x.coeff(i));
  }
  return found;
}

inline Array placed(const Effects& e, const Array& spread, const Ints& kind) {
  Array place = e.middle;
  for (Eigen::Index i = 0; i < e.z.size(); ++i) {
    place[i] += spread[kind[i] - 1] * e.z[i];
  }
  return place;
}

// Log-likelihood of ratings by one judge on one dimension, log P(l) = const + score[l] * alpha * x - passed[l], and its
// derivatives: by x in `by_x`, by passed in `by_passed`.
struct Likelihood {
  double value = 0, by_alpha = 0;
};

constexpr Eigen::Index BLOCK = 256; // ratings whose probabilities stay in the nearest cache
constexpr double SAFE = 300;        // exponents up to which nothing overflows, products of two included
constexpr double MOST = 1e150;      // from which a product is turned into its logarithm

inline double log_of_product(const Array& x, Eigen::Index n) {
  double total = 0, product = 1;
  for (Eigen::Index i = 0; i < n; ++i) {
    product *= x[i]; // each is 1 at least
    if (product > MOST) {
      total += std::log(product);
      product = 1;
    }
  }
  return total + std::log(product);
}

inline Likelihood likelihood(const int* y, const Array& x, const Array& score, double alpha, const Array& passed,
                             double* by_x, double* by_passed) {
  const Eigen::Index levels = score.size();
  const Array s = score - score[0], p = passed - passed[0], weight = (-p).exp();
  const double most_passed = p.abs().maxCoeff();
  Likelihood found;
  Eigen::ArrayXXd term(BLOCK, levels);
  Array t(BLOCK), rise(BLOCK), power(BLOCK), total(BLOCK), mean(BLOCK), shift(BLOCK);
  std::fill(by_passed, by_passed + levels, 0);
  for (Eigen::Index from = 0; from < x.size(); from += BLOCK) {
    const Eigen::Index n = std::min(BLOCK, x.size() - from);
    t.head(n) = alpha * x.segment(from, n);
    if (t.head(n).abs().maxCoeff() * s[levels - 1] + most_passed < SAFE) { // exp(t) once, then its powers
      rise.head(n) = t.head(n).exp();
      power.head(n).setOnes();
      for (Eigen::Index l = 0; l < levels; ++l) {
        const double gap = l > 0 ? s[l] - s[l - 1] : 0;
        if (gap == 1) {
          power.head(n) *= rise.head(n);
        } else if (gap > 0) {
          power.head(n) *= (gap * t.head(n)).exp();
        }
        term.col(l).head(n) = weight[l] * power.head(n);
      }
    } else {
      for (Eigen::Index l = 0; l < levels; ++l) {
        term.col(l).head(n) = s[l] * t.head(n) - p[l];
      }
      shift.head(n) = term.topRows(n).rowwise().maxCoeff();
      for (Eigen::Index l = 0; l < levels; ++l) {
        term.col(l).head(n) = (term.col(l).head(n) - shift.head(n)).exp();
      }
      found.value -= shift.head(n).sum();
    }
    total.head(n) = term.col(0).head(n);
    mean.head(n).setZero();
    for (Eigen::Index l = 1; l < levels; ++l) {
      total.head(n) += term.col(l).head(n);
      mean.head(n) += s[l] * term.col(l).head(n);
    }
    found.value -= log_of_product(total, n);
    total.head(n) = total.head(n).inverse();
    mean.head(n) *= total.head(n);
    for (Eigen::Index l = 0; l < levels; ++l) {
      by_passed[l] += (term.col(l).head(n) * total.head(n)).sum();
    }
    for (Eigen::Index i = 0; i < n; ++i) {
      const int given = y[from + i] - 1;
      const double residual = s[given] - mean[i];
      by_passed[given] -= 1;
      by_x[from + i] = alpha * residual;
      found.by_alpha += residual * x[from + i];
      found.value += s[given] * t[i] - p[given];
    }
  }
  return found;
}

template <typename T>
Array at_ratings(const Ints& cell, int first, int last, const Vector<T>& eta, const Ints& pair, const Vector<T>& halo,
                 double location) {
  Array x(last - first + 1);
  for (int i = first; i <= last; ++i) {
    x[i - first] = value_of(eta.coeff(cell[i - 1] - 1)) - location;
    if (halo.size() > 0) {
      x[i - first] += value_of(halo.coeff(pair[i - 1] - 1));
    }
  }
  return x;
}

} // namespace by_hand

// Levels[at] - less[less_at] + more, and on these effects in a partly centred form (see `uncentred` in model.stan), where
// `raw` is not empty; last the log density of raw ~ normal(centre * middle, spread ^ centre). `less` and `more` may be empty.
// The arrays of numbers are the model's own data, which outlive the gradient.
inline by_hand::Vector<double> partly_centred(const by_hand::Vector<double>& level, const std::vector<int>& at,
                                              const by_hand::Vector<double>& less, const std::vector<int>& less_at,
                                              const by_hand::Vector<double>& more, const by_hand::Vector<double>& raw,
                                              const by_hand::Vector<double>& spread, const std::vector<int>& kind,
                                              const std::vector<double>& centre, std::ostream*) {
  using namespace by_hand;
  const Effects e = effects(middles(level, at, less, less_at, more), raw.array(), spread.array(), kind, centre);
  Vector<double> found(at.size() + 1);
  found << placed(e, spread.array(), kind).matrix(), e.log_prior;
  return found;
}

inline by_hand::Vector<stan::math::var> partly_centred(
    const by_hand::Vector<stan::math::var>& level, const std::vector<int>& at,
    const by_hand::Vector<stan::math::var>& less, const std::vector<int>& less_at,
    const by_hand::Vector<stan::math::var>& more, const by_hand::Vector<stan::math::var>& raw,
    const by_hand::Vector<stan::math::var>& spread, const std::vector<int>& kind, const std::vector<double>& centre,
    std::ostream*) {
  using namespace by_hand;
  const Array spreads = values(spread);
  const Effects e = effects(middles(level, at, less, less_at, more), values(raw), spreads, kind, centre);
  const Array place = placed(e, spreads, kind);
  const size_t n = at.size();
  Kept<var> found(n + 1), level_(level), less_(less), more_(more), raw_(raw), spread_(spread);
  for (size_t i = 0; i < n; ++i) {
    found.coeffRef(i) = var(new vari(place[i], false));
  }
  found.coeffRef(n) = var(new vari(e.log_prior, false));
  const Kept<double> z(e.z.matrix()), scale(e.scale.matrix());
  const Ints *to = &at, *from = &less_at, *of = &kind;
  const Reals* share = &centre;
  stan::math::reverse_pass_callback([=]() mutable {
    const double prior = found.coeff(n).adj();
    for (size_t i = 0; i < n; ++i) {
      double by_middle = found.coeff(i).adj();
      if (z.size() > 0) {
        var& s = spread_.coeffRef((*of)[i] - 1);
        const double c = (*share)[i], by_place = by_middle, by_z = by_place * s.val() - prior * z.coeff(i);
        raw_.coeffRef(i).adj() += by_z / scale.coeff(i);
        by_middle -= c * by_z / scale.coeff(i);
        s.adj() += by_place * z.coeff(i) - c * (by_z * z.coeff(i) + prior) / s.val();
      }
      level_.coeffRef((*to)[i] - 1).adj() += by_middle;
      if (less_.size() > 0) {
        less_.coeffRef((*from)[i] - 1).adj() -= by_middle;
      }
      if (more_.size() > 0) {
        more_.coeffRef(i).adj() += by_middle;
      }
    }
  });
  return found;
}

// Log-likelihood of the ratings `first` to `last`: y of log P(l) = const + alpha * score[l] * (eta[cell] + halo[pair] -
// location) - passed[l]; score is data, halo may be empty.
inline double adjacent_categories(const std::vector<int>& y, const std::vector<int>& cell, int first, int last,
                                  const by_hand::Vector<double>& eta, const std::vector<int>& pair,
                                  const by_hand::Vector<double>& halo, const by_hand::Vector<double>& score,
                                  double alpha, double location, const by_hand::Vector<double>& passed, std::ostream*) {
  using namespace by_hand;
  const Array x = at_ratings(cell, first, last, eta, pair, halo, location);
  Array by_x(x.size()), by_passed(passed.size());
  return likelihood(&y[first - 1], x, score.array(), alpha, passed.array(), by_x.data(), by_passed.data()).value;
}

inline stan::math::var adjacent_categories(const std::vector<int>& y, const std::vector<int>& cell, int first, int last,
                                           const by_hand::Vector<stan::math::var>& eta, const std::vector<int>& pair,
                                           const by_hand::Vector<stan::math::var>& halo,
                                           const by_hand::Vector<stan::math::var>& score,
                                           const stan::math::var& alpha, const stan::math::var& location,
                                           const by_hand::Vector<stan::math::var>& passed, std::ostream*) {
  using namespace by_hand;
  const size_t n = last - first + 1, levels = passed.size(), twice = halo.size() > 0 ? n : 0;
  const size_t size = n + twice + levels + 2;
  vari** operands = arena<vari*>(size);
  double* slopes = arena<double>(size);
  const Array x = at_ratings(cell, first, last, eta, pair, halo, location.val());
  const Likelihood found
      = likelihood(&y[first - 1], x, values(score), alpha.val(), values(passed), slopes, slopes + n + twice);
  for (size_t i = 0; i < n; ++i) {
    operands[i] = eta.coeff(cell[first - 1 + i] - 1).vi_;
  }
  for (size_t i = 0; i < twice; ++i) {
    operands[n + i] = halo.coeff(pair[first - 1 + i] - 1).vi_;
    slopes[n + i] = slopes[i];
  }
  for (size_t l = 0; l < levels; ++l) {
    operands[n + twice + l] = passed.coeff(l).vi_;
  }
  operands[size - 2] = alpha.vi_;
  slopes[size - 2] = found.by_alpha;
  operands[size - 1] = location.vi_;
  slopes[size - 1] = -std::accumulate(slopes, slopes + n, 0.0);
  return var(new stan::math::precomputed_gradients_vari(found.value, size, operands, slopes));
}

} // namespace model_model_namespace
