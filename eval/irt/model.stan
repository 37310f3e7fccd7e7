// Many-facet partial credit model (Linacre 1989; with judge discriminations: Uto & Ueno 2020) for ratings of responses.
//
//   log P(category l) = const + alpha[j] * score[l] * (eta[cell] + halo - location) - kappa[j, d, 1] - ... - kappa[j, d, l - 1]
//   eta[cell]         = mu[d] + theta[m, d] - beta[q, d] + group[m, g, d] + v[m, q, d] + u[response, d]
//                       + length[d] * response length
//   halo              = halo[j, response] + judge_model[j, m] + judge_item[j, q]: what a judge adds to a response
//   kappa[j, d]       = alpha[j] * (tau[d] + item_step[q, d]) + deviation[j, d]: thresholds of a judge in log odds
//   location          = severity[j, d] + delta[c] - order * (+-1/2) - own_family - own_model
//
// Graded responses (cumulative logits; Samejima 1969) have the same terms, and cutpoints kappa in ascending order:
//
//   logit P(category l or above) = alpha[j] * (eta[cell] + halo - location) - kappa[j, d, l - 1]
//
// A cell is a response on one dimension. Ratings are sorted into groups that share judge, dimension, criterion and flags,
// so that a group is one categorical_logit_glm. Categories that nobody uses in a dimension, or that a judge never
// gives, are left out of the softmax; the others keep their scores. Compiles on CmdStan 2.27: no sum_to_zero_vector, no tuples.
//
// A comparison of two responses is won by the other one, tied or won by this one, at -1, 0 and 1 of an adjacent-category
// logit model (Agresti 1992), the ordinal form of Davidson's (1970) for ties; what both responses share cancels:
//
//   log P(tie) / P(other) = x + tie[h], log P(this) / P(tie) = x - tie[h]
//   x = alpha[j] * scale * (eta[this] - eta[other] + judge_model[j, this] - judge_model[j, other]
//                           + position[h] * (+-1/2) + own_family + own_model)
functions {
  // n values from `first` on; none where n is 0 (2.27 refuses to slice an empty vector).
  vector part(vector x, int first, int n) {
    if (n == 0) {
      return rep_vector(0, 0);
    }
    return x[first : first + n - 1];
  }

  // n - 1 free values to n values that sum to zero; orthonormal (Helmert), O(n).
  vector sum_zero(vector z) {
    int n = rows(z);
    vector[n + 1] x = rep_vector(0, n + 1);
    real total = 0;
    for (i in 1 : n) {
      int k = n + 1 - i;
      real w = z[k] / sqrt(k * (k + 1.0));
      total += w;
      x[k] += total;
      x[k + 1] -= w * k;
    }
    return x;
  }

  // The inverse: the n - 1 free values that sum_zero turns into x less its mean.
  vector coordinates(vector x) {
    int n = rows(x) - 1;
    vector[n] z;
    real total = 0;
    for (k in 1 : n) {
      total += x[k];
      z[k] = (total - k * x[k + 1]) / sqrt(k * (k + 1.0));
    }
    return z;
  }

  // Cutpoints `cut`, ascending, moved by `by` and ascending still: the gaps by softplus, the mean as it is.
  vector moved_cuts(vector cut, vector by) {
    int n = rows(cut);
    vector[n] x = cut + by;
    if (n > 1) {
      vector[n - 1] gap = cut[2 : n] - cut[1 : n - 1];
      x = append_row(0, cumulative_sum(log1p_exp(gap + log1m_exp(-gap) + by[2 : n] - by[1 : n - 1])));
      x += mean(cut) + mean(by) - mean(x);
    }
    return x;
  }

  // Ascending cutpoints of the same mean from free steps.
  vector ascending(vector steps) {
    int n = rows(steps);
    vector[n] x = steps;
    if (n > 1) {
      x = append_row(0, cumulative_sum(log1p_exp(steps[2 : n] - steps[1 : n - 1])));
      x += mean(steps) - mean(x);
    }
    return x;
  }

  // (n - 1)(m - 1) free values to an n x m matrix whose rows and columns sum to zero.
  matrix sum_zero_both(vector z, int n, int m) {
    matrix[n - 1, m] half;
    matrix[n, m] x;
    for (i in 1 : n - 1) {
      half[i] = sum_zero(part(z, (i - 1) * (m - 1) + 1, m - 1))';
    }
    for (j in 1 : m) {
      x[ : , j] = sum_zero(half[ : , j]);
    }
    return x;
  }

  // Abilities of models, without scale and correlations, t ~ normal(0, 1) with theta = t * root', from a form in which
  // the posterior is about normal(0, 1) whatever root is: with prior covariance root * root' and data that tell
  // `guess` with precision `told`, theta is about normal(V * told * guess, V) where V = root / (I + root' * told * root) * root'.
  // `factor` is that inner matrix's Cholesky factor. No division by root, which is singular where dimensions go along.
  matrix without_scale(matrix raw, matrix root, matrix factor, vector told, matrix guess) {
    matrix[rows(raw), cols(raw)] seen = mdivide_left_tri_low(factor, diag_post_multiply(root', told) * guess')';
    return mdivide_right_tri_low(raw + seen, factor);
  }

  matrix factor_of(matrix root, vector told) {
    int n = rows(root);
    return cholesky_decompose(add_diag(quad_form_sym(diag_matrix(told), root), rep_vector(1, n)));
  }

  // Effects from their partly centred form, raw ~ normal(centre * middle, scale ^ centre).
  vector uncentred(vector raw, vector middle, vector centre, vector scale) {
    return exp((1 - centre) .* log(scale)) .* (raw - centre .* middle);
  }

  // Written in functions.hpp, with their derivatives: they run over all cells and all ratings.
  vector partly_centred(vector level, array[] int at, vector less, array[] int less_at, vector more, vector raw,
                        vector spread, array[] int kind, data array[] real centre);
  real adjacent_categories(array[] int y, array[] int cell, int first, int last, vector eta, array[] int pair,
                           vector halo, vector score, real alpha, real location, vector passed);

  // Log-likelihood of the groups `slice`, in the form that reduce_sum wants.
  real groups_lpdf_sum(array[] int slice, int from, int to, array[] int y, array[] int cell, array[] int pair,
                       array[] int first, array[] int last, array[] int judge, array[] int dim,
                       array[] int step_first, array[] int steps, array[] vector score, array[,] int levels,
                       array[, , ] int level, vector eta, vector halo, vector location, vector alpha, matrix kappa,
                       array[] int group_item, matrix item_passed, int graded) {
    real total = 0;
    for (g in slice) {
      int j = judge[g];
      int d = dim[g];
      int a = step_first[d];
      int l = levels[j, d];
      array[l] int given = level[j, d, 1 : l];
      vector[steps[d]] own = kappa[j, a : a + steps[d] - 1]';
      if (graded) {
        int n = last[g] - first[g] + 1;
        vector[n] x = eta[cell[first[g] : last[g]]];
        vector[l - 1] cut = append_row(0, own)[given[2 : l]] + alpha[j] * location[g];
        if (rows(halo) > 0) {
          x += halo[pair[first[g] : last[g]]];
        }
        total += ordered_logistic_glm_lpmf(y[first[g] : last[g]] | to_matrix(x, n, 1), rep_vector(alpha[j], 1), cut);
      } else {
        vector[l] s = score[d][given];
        vector[l] passed = append_row(0, cumulative_sum(own))[given];
        if (size(group_item) > 0) {
          passed += alpha[j] * item_passed[given, group_item[g]];
        }
        total += adjacent_categories(y, cell, first[g], last[g], eta, pair, halo, s, alpha[j], location[g], passed);
      }
    }
    return total;
  }

  // Log-likelihood of outcomes in -1, 0, 1. Ties are possible in the first rows only, those of `tie`.
  real comparisons_lpdf(vector outcome, vector x, vector tie) {
    int n = rows(tie);
    vector[rows(x)] untied = log1p_exp(2 * x) - x; // log(exp(-x) + exp(x))
    real total = dot_product(outcome, x) - sum(untied);
    if (n > 0) {
      total += sum((1 - square(outcome[1 : n])) .* tie - log1p_exp(tie - untied[1 : n]));
    }
    return total;
  }
}
data {
  int<lower=2> M; // models
  int<lower=1> J; // judges
  int<lower=1> D; // dimensions
  int<lower=1> C; // criteria, sorted by dimension
  int<lower=2> K; // categories of the scale
  int<lower=1> B; // items x dimensions that were rated, sorted by dimension
  int<lower=1> E; // cells, sorted by dimension
  int<lower=0> N; // ratings, sorted by group
  int<lower=0> G; // groups
  int<lower=0> P; // judge x response pairs (halo, judge x model, judge x item), 0: none
  int<lower=0> V; // model x item x dimension triples (v), 0: none
  int<lower=0> X; // judge x model pairs, 0: none
  int<lower=0> Z; // judge x item pairs, 0: none
  int<lower=0> H; // groups of items, 0: none

  array[D] int<lower=1> steps; // used categories - 1
  array[D] vector[K] score; // distance of each used category from the lowest, then zeros
  array[J, D] int<lower=1, upper=K> levels; // used categories that the judge gives
  array[J, D, K] int<lower=0, upper=K> level; // which they are, then zeros
  array[J, D] int<lower=0> own_steps; // free deviations of its thresholds
  array[D] int<lower=1> item_first;
  array[D] int<lower=1> item_last;
  array[D] int<lower=1> criterion_first;
  array[D] int<lower=1> criterion_last;
  array[D] int<lower=1> cell_first;
  array[D] int<lower=1> cell_last;
  array[E] int<lower=1> cell_ability; // (d - 1) * M + m
  array[E] int<lower=1> cell_item;
  vector[E] cell_length;

  array[G] int<lower=1> first;
  array[G] int<lower=1> last;
  array[G] int<lower=1, upper=J> judge;
  array[G] int<lower=1, upper=D> dim;
  array[G] int<lower=1, upper=C> criterion;
  vector[G] reversed; // +1/2 or -1/2
  vector[G] own_family; // 0 or 1
  vector[G] own_model;
  array[N] int<lower=1> y;
  array[N] int<lower=1, upper=E> cell;
  array[P > 0 ? N : 0] int<lower=1> pair;
  array[X > 0 ? P : 0] int<lower=1, upper=X> pair_model;
  array[Z > 0 ? P : 0] int<lower=1, upper=Z> pair_item;
  array[V > 0 ? E : 0] int<lower=1, upper=V> cell_triple;
  array[V] int<lower=1> triple_ability; // (d - 1) * M + m
  array[V] int<lower=1, upper=B> triple_item;
  array[V] int<lower=1, upper=D> triple_dim;
  array[H > 0 ? E : 0] int<lower=1> cell_group; // ((g - 1) * D + d - 1) * M + m
  int<lower=0, upper=1> use_item_steps;
  array[use_item_steps ? G : 0] int<lower=1, upper=B> group_item;

  int<lower=0, upper=1> graded;
  int<lower=0, upper=1> use_alpha;
  int<lower=0, upper=1> use_u;
  int<lower=0, upper=1> use_halo;
  int<lower=0, upper=1> use_length;
  int<lower=0, upper=1> use_order;
  int<lower=0, upper=1> use_own_family;
  int<lower=0, upper=1> use_own_model;
  int<lower=0, upper=1> use_threads;

  // How far a block is centred: 0 for effect = s * z with z ~ normal(0, 1), 1 for effect ~ normal(0, s), and between
  // them effect = s^(1 - c) * z with z ~ normal(0, s^c) (Papaspiliopoulos et al. 2007; Gorinova et al. 2020).
  vector<lower=0>[D] centre_theta; // what ratings tell of an ability (inverse variance), and where about it is, in
  matrix[M - 1, D] centre_theta_at; // the coordinates of sum_zero: see without_scale
  vector<lower=0, upper=1>[D] centre_beta;
  real<lower=0, upper=1> centre_severity;
  real<lower=0, upper=1> centre_dev;
  real<lower=0, upper=1> centre_alpha;
  vector<lower=0, upper=1>[E] centre_u; // by cell: a centred effect of a cell that tells little would be a funnel
  real<lower=0, upper=1> centre_tau;
  vector<lower=0, upper=1>[V] centre_v;
  vector<lower=0, upper=1>[X] centre_judge_model;
  vector<lower=0, upper=1>[Z] centre_judge_item;
  vector[2] severity_prior; // mean and sd of log s_severity
  vector[2] dev_prior;

  // Anchors: value = mean + sd * z, so sd 0 fixes it. Where a block has anchors it is not centred on zero.
  array[D] int<lower=0, upper=1> items_anchored;
  array[B] int<lower=0, upper=1> item_anchored;
  vector[B] item_mean;
  vector<lower=0>[B] item_sd;
  int<lower=0, upper=1> judges_anchored;
  array[J, D] int<lower=0, upper=1> judge_anchored;
  matrix[J, D] judge_mean;
  matrix<lower=0>[J, D] judge_sd;
  int<lower=0, upper=1> alphas_anchored;
  array[J] int<lower=0, upper=1> alpha_anchored;
  vector[J] alpha_mean;
  vector<lower=0>[J] alpha_sd;

  // Comparisons. Where there is nothing else, mu has no meaning and stays out of the centring of u.
  vector<lower=0, upper=1>[D] rated;
  int<lower=0> comparisons; // those of judges that give ties first
  int<lower=0, upper=comparisons> ties; // how many these are
  int<lower=0> comparers; // judges that compare
  array[comparers] int<lower=1, upper=J> comparer; // which they are
  array[comparisons] int<lower=1, upper=comparers> compared_by;
  array[comparisons] int<lower=1, upper=E> cell_this;
  array[comparisons] int<lower=1, upper=E> cell_other;
  array[X > 0 ? comparisons : 0] int<lower=1, upper=X> judge_model_this;
  array[X > 0 ? comparisons : 0] int<lower=1, upper=X> judge_model_other;
  vector<lower=-1, upper=1>[comparisons] outcome;
  vector[comparisons] place; // +1/2: this one was shown first, -1/2: the other
  vector[comparisons] compared_family; // 1: this one is of the judge's family, -1: the other
  vector[comparisons] compared_model;
  int<lower=0, upper=1> use_position;
  int<lower=0, upper=1> use_scale; // ratings set the scale, comparisons follow it
  real<lower=0, upper=1> centre_position;
  real<lower=0, upper=1> centre_tie;
}
transformed data {
  array[G] int groups;
  array[D] int step_first;
  array[E] int cell_dim;
  array[E] real share_u = to_array_1d(centre_u);
  array[V] real share_v = to_array_1d(centre_v);
  int S = sum(steps);
  int free_steps = S - D;
  int has_main = J > 1 || judges_anchored;
  int has_deviation = (J > 1 && D > 1) || judges_anchored;
  int deviations = sum(to_array_1d(own_steps));
  int most_steps = max(steps);
  array[use_item_steps ? B : 0] int item_dim;
  int item_steps = 0;
  for (g in 1 : G) {
    groups[g] = g;
    if (max(y[first[g] : last[g]]) > levels[judge[g], dim[g]]) {
      reject("a rating of group ", g, " is of no category of its judge");
    }
  }
  for (d in 1 : D) {
    step_first[d] = sum(steps[1 : d - 1]) + 1;
    cell_dim[cell_first[d] : cell_last[d]] = rep_array(d, cell_last[d] - cell_first[d] + 1);
    if (use_item_steps) {
      item_dim[item_first[d] : item_last[d]] = rep_array(d, item_last[d] - item_first[d] + 1);
      item_steps += (steps[d] - 1) * (item_last[d] - item_first[d] + 1);
    }
  }
}
parameters {
  vector[D] mu;
  vector<lower=0>[D] s_theta;
  cholesky_factor_corr[D] L_theta;
  vector[(M - 1) * D] theta_raw;
  vector<lower=0>[D] s_beta;
  vector[B - D + sum(items_anchored)] beta_raw;
  vector[sum(items_anchored) > 0 ? D : 0] beta_mean;
  vector<lower=0>[has_main] s_severity;
  vector[judges_anchored ? J : J - 1] severity_raw;
  vector<lower=0>[has_deviation] s_dev;
  vector[judges_anchored ? J * D : (J - 1) * (D - 1)] dev_raw;
  vector[judges_anchored ? D : 0] severity_mean;
  vector<lower=0>[use_alpha] s_alpha;
  vector[use_alpha ? J - 1 + alphas_anchored : 0] alpha_raw;
  vector[C - D] delta_raw;
  vector[free_steps] tau_raw;
  vector<lower=0>[deviations > 0] s_tau;
  vector[deviations] kappa_raw;
  vector[use_length ? D : 0] length;
  vector[use_order] order;
  vector[use_own_family] own_family_effect;
  vector[use_own_model] own_model_effect;
  vector<lower=0>[V > 0 ? D : 0] s_v;
  vector[V] v_raw;
  vector<lower=0>[X > 0] s_judge_model;
  vector[X] judge_model_raw;
  vector<lower=0>[Z > 0] s_judge_item;
  vector[Z] judge_item_raw;
  vector<lower=0>[H > 0 ? D : 0] s_group;
  vector[H > 0 ? D * (M - 1) * (H - 1) : 0] group_raw;
  vector<lower=0>[item_steps > 0] s_item_step;
  vector[item_steps] item_step_raw;
  vector<lower=0>[use_halo] s_halo;
  vector[use_halo ? P : 0] halo_raw;
  vector<lower=0>[use_u ? D : 0] s_u;
  vector[use_u ? E : 0] u_raw;
  vector[use_position] position_mean;
  vector<lower=0>[use_position && comparers > 1] s_position;
  vector[use_position && comparers > 1 ? comparers : 0] position_raw;
  vector[ties > 0] tie_mean;
  vector<lower=0>[ties > 0 && comparers > 1] s_tie;
  vector[ties > 0 && comparers > 1 ? comparers : 0] tie_raw;
  vector[use_scale] log_scale;
}
transformed parameters {
  matrix[M, D] theta;
  matrix[M - 1, D] t; // theta without scale and correlations
  matrix[D, D] factor;
  matrix[J, D] severity = rep_matrix(0, J, D);
  vector[use_alpha ? J : 0] log_alpha;
  vector[B] beta;
  vector[C] delta;
  vector[S] tau; // common
  matrix[J, S] kappa = rep_matrix(0, J, S); // each at its upper category, from the next lower one that the judge gives
  vector[deviations] kappa_middle;
  matrix[H > 0 ? M * D : 0, H] group; // rows as in to_vector(theta)
  vector[X] judge_model = uncentred(judge_model_raw, rep_vector(0, X), centre_judge_model, rep_vector(X > 0 ? s_judge_model[1] : 1, X));
  vector[use_position ? comparers : 0] position;
  vector[ties > 0 ? comparers : 0] tie;
  if (H > 0) {
    int n = (M - 1) * (H - 1);
    for (d in 1 : D) {
      group[(d - 1) * M + 1 : d * M] = s_group[d] * sum_zero_both(group_raw[(d - 1) * n + 1 : d * n], M, H);
    }
  }
  if (use_position) {
    position = rep_vector(position_mean[1], comparers);
    if (comparers > 1) {
      position += s_position[1] ^ (1 - centre_position) * (position_raw - centre_position * position_mean[1]);
    }
  }
  if (ties > 0) {
    tie = rep_vector(tie_mean[1], comparers);
    if (comparers > 1) {
      tie += s_tie[1] ^ (1 - centre_tie) * (tie_raw - centre_tie * tie_mean[1]);
    }
  }
  {
    matrix[D, D] root = diag_pre_multiply(s_theta, L_theta);
    matrix[M - 1, D] z;
    factor = factor_of(root, centre_theta);
    t = without_scale(to_matrix(theta_raw, M - 1, D), root, factor, centre_theta, centre_theta_at);
    z = t * root';
    for (d in 1 : D) {
      theta[ : , d] = sum_zero(z[ : , d]);
    }
  }
  if (judges_anchored) {
    for (j in 1 : J) {
      for (d in 1 : D) {
        real z = dev_raw[(d - 1) * J + j];
        severity[j, d] = judge_anchored[j, d] ? judge_mean[j, d] + judge_sd[j, d] * z
                         : severity_mean[d] + s_severity[1] * severity_raw[j] + s_dev[1] * z;
      }
    }
  } else if (J > 1) {
    // Deviations sum to zero over judges and over dimensions: the judge's main effect is its mean over dimensions.
    severity = rep_matrix(s_severity[1] ^ (1 - centre_severity) * sum_zero(severity_raw), D);
    if (D > 1) {
      severity += s_dev[1] ^ (1 - centre_dev) * sum_zero_both(dev_raw, J, D);
    }
  }
  if (use_alpha) {
    if (alphas_anchored) {
      for (j in 1 : J) {
        log_alpha[j] = alpha_anchored[j] ? alpha_mean[j] + alpha_sd[j] * alpha_raw[j] : s_alpha[1] * alpha_raw[j];
      }
    } else {
      log_alpha = s_alpha[1] ^ (1 - centre_alpha) * sum_zero(alpha_raw);
    }
  }
  {
    int at = 1;
    for (d in 1 : D) {
      int n = item_last[d] - item_first[d] + 1;
      vector[n - 1 + items_anchored[d]] z = part(beta_raw, at, n - 1 + items_anchored[d]);
      vector[n] scaled;
      at += rows(z);
      if (items_anchored[d]) {
        scaled = beta_mean[d] + s_beta[d] * z;
        for (i in 1 : n) {
          int b = item_first[d] + i - 1;
          if (item_anchored[b]) {
            scaled[i] = item_mean[b] + item_sd[b] * z[i];
          }
        }
      } else {
        scaled = s_beta[d] ^ (1 - centre_beta[d]) * sum_zero(z);
      }
      beta[item_first[d] : item_last[d]] = scaled;
    }
  }
  {
    int at = 1;
    int tau_at = 1;
    int dev_at = 1;
    for (d in 1 : D) {
      int c = criterion_last[d] - criterion_first[d];
      int f = steps[d] - 1;
      int a = step_first[d];
      delta[criterion_first[d] : criterion_last[d]] = sum_zero(part(delta_raw, at, c));
      tau[a : a + f] = sum_zero(part(tau_raw, tau_at, f));
      if (graded) {
        tau[a : a + f] = ascending(tau[a : a + f]);
      }
      for (j in 1 : J) {
        int l = levels[j, d];
        int n = own_steps[j, d];
        vector[l] passed = append_row(0, cumulative_sum(tau[a : a + f]))[level[j, d, 1 : l]];
        vector[l - 1] own = (use_alpha ? exp(log_alpha[j]) : 1) * (passed[2 : l] - passed[1 : l - 1]);
        if (graded) { // of cutpoints that a judge makes one of, their mean
          for (i in 2 : l) {
            own[i - 1] /= level[j, d, i] - level[j, d, i - 1];
          }
        }
        if (n > 0) {
          vector[n] middle = centre_tau * coordinates(own);
          vector[n + 1] by = sum_zero(s_tau[1] ^ (1 - centre_tau) * (kappa_raw[dev_at : dev_at + n - 1] - middle));
          kappa_middle[dev_at : dev_at + n - 1] = middle;
          if (graded) {
            own = moved_cuts(own, by);
          } else {
            own += by;
          }
          dev_at += n;
        }
        for (i in 2 : l) {
          kappa[j, a + level[j, d, i] - 2] = own[i - 1];
        }
      }
      at += c;
      tau_at += f;
    }
  }
}
model {
  vector[E] eta;
  vector[P] halo;
  vector[G] location;
  matrix[use_item_steps ? most_steps + 1 : 0, use_item_steps ? B : 0] item_passed
    = rep_matrix(0, use_item_steps ? most_steps + 1 : 0, use_item_steps ? B : 0);
  vector[J] alpha = use_alpha ? exp(log_alpha) : rep_vector(1, J);
  {
    vector[M * D] ability = to_vector(theta + rep_matrix((mu .* rated)', M));
    vector[0] none;
    vector[use_length || H > 0 ? E : 0] more = rep_vector(0, use_length || H > 0 ? E : 0);
    vector[E + 1] found;
    if (H > 0) {
      more += to_vector(group)[cell_group];
    }
    if (use_length) {
      more += length[cell_dim] .* cell_length;
    }
    if (V > 0) {
      vector[V + 1] v = partly_centred(ability, triple_ability, beta, triple_item, none, v_raw, s_v, triple_dim, share_v);
      target += v[V + 1];
      found = partly_centred(v, cell_triple, none, cell_triple, more, u_raw, s_u, cell_dim, share_u);
    } else {
      found = partly_centred(ability, cell_ability, beta, cell_item, more, u_raw, s_u, cell_dim, share_u);
    }
    target += found[E + 1];
    eta = found[1 : E];
  }
  halo = use_halo ? s_halo[1] * halo_raw : rep_vector(0, P);
  if (X > 0) {
    halo += judge_model[pair_model];
    judge_model_raw ~ normal(0, exp(centre_judge_model * log(s_judge_model[1])));
  }
  if (Z > 0) {
    vector[Z] scale = rep_vector(s_judge_item[1], Z);
    halo += uncentred(judge_item_raw, rep_vector(0, Z), centre_judge_item, scale)[pair_item];
    judge_item_raw ~ normal(0, exp(centre_judge_item * log(s_judge_item[1])));
  }
  if (item_steps > 0) {
    int at = 1;
    for (b in 1 : size(item_dim)) {
      int n = steps[item_dim[b]];
      vector[n] own = sum_zero(part(item_step_raw, at, n - 1));
      item_passed[2 : n + 1, b] = s_item_step[1] * cumulative_sum(own);
      at += n - 1;
    }
  }
  for (g in 1 : G) {
    location[g] = severity[judge[g], dim[g]] + delta[criterion[g]];
  }
  if (use_order) {
    location -= order[1] * reversed;
  }
  if (use_own_family) {
    location -= own_family_effect[1] * own_family;
  }
  if (use_own_model) {
    location -= own_model_effect[1] * own_model;
  }
  if (use_threads) {
    target += reduce_sum(groups_lpdf_sum, groups, 1, y, cell, pair, first, last, judge, dim, step_first, steps, score,
                         levels, level, eta, halo, location, alpha, kappa, group_item, item_passed, graded);
  } else {
    target += groups_lpdf_sum(groups, 1, G, y, cell, pair, first, last, judge, dim, step_first, steps, score, levels, level,
                              eta, halo, location, alpha, kappa, group_item, item_passed, graded);
  }
  if (comparisons > 0) {
    vector[comparisons] x = eta[cell_this] - eta[cell_other];
    if (X > 0) {
      x += judge_model[judge_model_this] - judge_model[judge_model_other];
    }
    if (use_position) {
      x += position[compared_by] .* place;
    }
    if (use_own_family) {
      x += own_family_effect[1] * compared_family;
    }
    if (use_own_model) {
      x += own_model_effect[1] * compared_model;
    }
    x .*= alpha[comparer[compared_by]] * (use_scale ? exp(log_scale[1]) : 1);
    if (ties > 0) {
      target += comparisons_lpdf(outcome | x, tie[compared_by[1 : ties]]);
    } else {
      target += comparisons_lpdf(outcome | x, rep_vector(0, 0));
    }
  }

  // Scales of blocks with few effects: a prior that avoids zero (Chung et al. 2013), where such a block has a funnel.
  mu ~ normal(0, 5);
  s_theta ~ lognormal(0, 0.8);
  L_theta ~ lkj_corr_cholesky(2);
  to_vector(t) ~ std_normal();
  target += -(M - 1) * sum(log(diagonal(factor))); // dt / dtheta_raw
  s_beta ~ lognormal(log(0.7), 0.8);
  beta_mean ~ normal(0, 5);
  {
    int at = 1;
    for (d in 1 : D) {
      int n = item_last[d] - item_first[d] + items_anchored[d];
      part(beta_raw, at, n) ~ normal(0, items_anchored[d] ? 1 : s_beta[d] ^ centre_beta[d]);
      at += n;
    }
  }
  s_severity ~ lognormal(severity_prior[1], severity_prior[2]);
  severity_raw ~ normal(0, has_main && !judges_anchored ? s_severity[1] ^ centre_severity : 1);
  s_dev ~ lognormal(dev_prior[1], dev_prior[2]);
  dev_raw ~ normal(0, has_deviation && !judges_anchored ? s_dev[1] ^ centre_dev : 1);
  severity_mean ~ normal(0, 5);
  s_alpha ~ lognormal(log(0.35), 0.8);
  alpha_raw ~ normal(0, use_alpha && !alphas_anchored ? s_alpha[1] ^ centre_alpha : 1);
  delta_raw ~ std_normal();
  tau_raw ~ normal(0, 2.5);
  s_tau ~ lognormal(log(0.25), 1);
  kappa_raw ~ normal(kappa_middle, deviations > 0 ? s_tau[1] ^ centre_tau : 1);
  length ~ std_normal();
  order ~ std_normal();
  own_family_effect ~ std_normal();
  own_model_effect ~ std_normal();
  s_v ~ student_t(4, 0, 1);
  s_judge_model ~ lognormal(log(0.25), 0.8);
  s_judge_item ~ lognormal(log(0.25), 0.8);
  s_group ~ lognormal(log(0.25), 0.8);
  group_raw ~ std_normal();
  s_item_step ~ lognormal(log(0.5), 1);
  item_step_raw ~ std_normal();
  s_halo ~ std_normal();
  halo_raw ~ std_normal();
  s_u ~ student_t(4, 0, 1);

  position_mean ~ std_normal();
  s_position ~ lognormal(log(0.25), 0.8);
  tie_mean ~ normal(0, 2);
  s_tie ~ lognormal(log(0.35), 0.8);
  if (comparers > 1) {
    if (use_position) {
      position_raw ~ normal(centre_position * position_mean[1], s_position[1] ^ centre_position);
    }
    if (ties > 0) {
      tie_raw ~ normal(centre_tie * tie_mean[1], s_tie[1] ^ centre_tie);
    }
  }
  log_scale ~ normal(0, 0.5);
}
generated quantities {
  matrix[D, D] correlation = multiply_lower_tri_self_transpose(L_theta);
  matrix[V > 0 ? M : 0, D] v_mean; // of the items that a model answered: its ability on these is theta + v_mean
  if (V > 0) {
    vector[M * D] ability = to_vector(theta + rep_matrix((mu .* rated)', M));
    vector[V] v = uncentred(v_raw, ability[triple_ability] - beta[triple_item], centre_v, s_v[triple_dim]);
    vector[M * D] total = rep_vector(0, M * D);
    vector[M * D] n = rep_vector(0, M * D);
    for (i in 1 : V) {
      total[triple_ability[i]] += v[i];
      n[triple_ability[i]] += 1;
    }
    for (i in 1 : M * D) {
      total[i] /= fmax(n[i], 1);
    }
    v_mean = to_matrix(total, M, D);
  }
}
