// Compiled several times, each for one set of vector instructions: TOPKLOSS_KERNELS names the table that comes out.

#include "cross_entropy.h"
#include "maths.h"
#include "probabilities.h"
#include "tiles.h"

namespace topkloss {
namespace {

// (1 - smoothing) score + smoothing / C * sum of w_c / w_y (score + x_y - x_c)
template <typename Real>
inline Real smoothed(const Smoothing<Real> &by, double smoothing, Real score, Real below, Real drop, int64_t target) {
  // drop: the sum of w_c (most - x_c); -log p_c = (score - below) + (most - x_c). Where the target's logit is -inf the
  // drop is infinite, so what is added to it does not matter, as long as it is no NaN.
  const Real least = below < static_cast<Real>(__builtin_inf()) ? score - below : Real{0};
  return static_cast<Real>(1 - smoothing) * score + by.relative(target) * (by.whole * least + drop);
}

template <typename Real>
void sum_drops(Planes<Real> of, int64_t classes, int size, const Smoothing<Real> &by, const Real *most, Real *drop) {
  for (int p = 0; p < size; ++p) drop[p] = 0;
  for (int64_t c = 0; c < classes; ++c) {
    const Real *const x = of.x + c * of.pitch;
    const Real weight = by.of_class(c);
#pragma omp simd
    for (int p = 0; p < size; ++p) drop[p] += weight * (most[p] - x[p]);
  }
}

// Targets of a tile in whole vectors, -1 where not counted; finds the first counted one that is no class.
template <typename Real, typename T>
void take_targets(const Place<T> &at, Int<Real> *target, int64_t &illegal) {
  const int64_t *const labels = at.of.targets + at.element, classes = at.of.classes;
  const uint8_t *const counts = at.of.counts == nullptr ? nullptr : at.of.counts + at.element;
  int counted = 0, usable = 0;
  const auto take = [&](int p, bool chosen) {
    const bool is_usable = chosen & (labels[p] >= 0) & (labels[p] < classes);
    counted += chosen;
    usable += is_usable;
    target[p] = is_usable ? static_cast<Int<Real>>(labels[p]) : -1;
  };
  if (counts == nullptr) {
#pragma omp simd reduction(+ : counted, usable)
    for (int p = 0; p < at.size; ++p) take(p, true);
  } else {
#pragma omp simd reduction(+ : counted, usable)
    for (int p = 0; p < at.size; ++p) take(p, counts[p] != 0);
  }
  for (int p = at.size; p < whole<Real>(at.size); ++p) target[p] = -1;
  for (int p = 0; usable < counted && illegal < 0; ++p) {
    const bool legal = static_cast<uint64_t>(labels[p]) < static_cast<uint64_t>(classes);
    if ((counts == nullptr || counts[p] != 0) && !legal) illegal = at.element + p;
  }
}

// The same of a tile whose elements are such rows; with smoothing also what `sum_drops` sums.
template <typename T, typename Real>
void sum_up_rows(const Place<T> &at, Real *scratch, const Smoothing<Real> &by, Sums<Real> &sums, Real *drop) {
  const int64_t classes = at.of.classes;
  for (int p = 0; p < whole<Real>(at.size); ++p) {
    RowSums<Real> row{0, 0, 1, 0};
    if (sums.target[p] >= 0) {
      const Real *const x = row_of(at.logits + p * at.of.position_stride, classes, scratch);
      row = sum_up_row<false>(x, classes, sums.target[p], static_cast<Real *>(nullptr));
      if (drop != nullptr) sum_drops(Planes<Real>{const_cast<Real *>(x), 1}, classes, 1, by, &row.most, drop + p);
    }
    sums.rest[p] = row.rest;
    sums.own[p] = row.own;
    sums.below[p] = row.below;
  }
}

// Losses of a tile, 0 where not counted; with smoothing also the scores, which are the losses without it.
template <typename T, typename Real>
void loss_tile(const Place<T> &at, Real *scratch, const Smoothing<Real> &by, Real *losses, Real *scores,
               int64_t &illegal) {
  Sums<Real> sums;
  alignas(64) Real score[TILE], drop[TILE];
  take_targets<Real>(at, sums.target, illegal);
  if (has_long_rows(at.of)) {
    sum_up_rows(at, scratch, by, sums, scores == nullptr ? nullptr : drop);
  } else {
    const Planes<Real> planes = planes_of(at, scratch);
    sum_up<false>(planes, at.of.classes, whole<Real>(at.size), sums, planes);
    if (scores != nullptr) sum_drops(planes, at.of.classes, at.size, by, sums.most, drop);
  }
  for (int p = 0; p < at.size; p += LANES<Real>) {
    const auto target = load_vector<Ints<Real>>(sums.target + p);
    const auto below = load_vector<Reals<Real>>(sums.below + p), rest = load_vector<Reals<Real>>(sums.rest + p);
    const auto now = below + log_sum_of<Real>(below, rest, load_vector<Reals<Real>>(sums.own + p));
    store_vector(score + p, target < 0 ? Reals<Real>{} : now);
  }
  memcpy(scores == nullptr ? losses : scores, score, at.size * sizeof(Real));
  for (int p = 0; scores != nullptr && p < at.size; ++p) {
    const bool counts = sums.target[p] >= 0;
    const int64_t target = counts ? sums.target[p] : 0;
    losses[p] = counts ? smoothed(by, at.of.smoothing, score[p], sums.below[p], drop[p], target) : Real{0};
  }
}

template <typename T>
void losses_of(const topkloss_logits &of, int64_t first, int64_t last, void *losses, void *scores, int64_t &illegal) {
  using Real = Computing<T>;
  const Smoothing<Real> by(of);
  Scratch<Real> scratch(scratch_of(of));
  while (first < last) {
    const auto at = Place<T>::at(of, first, last, TILE);
    Real *const losses_to = static_cast<Real *>(losses) + at.element;
    Real *const scores_to = scores == nullptr ? nullptr : static_cast<Real *>(scores) + at.element;
    loss_tile(at, scratch.numbers, by, losses_to, scores_to, illegal);
    first += at.size;
  }
}

// Factors of the gradient of one element: of the powers, the target's own, and of the smoothed part.
template <typename Real>
struct Factors {
  Real power, own, spread;
};

template <typename Real>
Factors<Real> factors_of(const Smoothing<Real> &by, double smoothing, Real weight, Real rest, Real own,
                         int64_t target) {
  const Real sum = rest + own;
  if (smoothing == 0) return {weight / sum, -(rest * (weight / sum)), Real{0}};
  const Real relative = by.relative(target);
  const Real all = static_cast<Real>(1 - smoothing) + relative * by.whole;
  const Real more = relative * (by.whole - by.of_class(target));
  const Real taken = static_cast<Real>(1 - smoothing) + relative * by.of_class(target);
  // all * own / sum - taken, of which neither side is near to the other
  const Real slope = own < rest ? all * (own / sum) - taken : more - all * (rest / sum);
  return {weight * all / sum, weight * slope, weight * relative};
}

// The gradient of planes whose powers are given.
template <typename Real>
void differentiate(Planes<Real> powers, Planes<Real> to, int64_t classes, int size, const Sums<Real> &sums,
                   const Real *weights) {
  for (int p = 0; p < size; p += LANES<Real>) {
    const auto target = load_vector<Ints<Real>>(sums.target + p);
    const auto weight = load_vector<Reals<Real>>(weights + p), rest = load_vector<Reals<Real>>(sums.rest + p);
    const auto each = weight / (rest + load_vector<Reals<Real>>(sums.own + p));
    const auto own = -(rest * each);
    for (int64_t c = 0; c < classes; ++c) {
      const auto rival = load_vector<Reals<Real>>(powers.x + c * powers.pitch + p) * each;
      const auto slope = target == static_cast<Int<Real>>(c) ? own : rival;
      store_vector(to.x + c * to.pitch + p, weight == Real{0} ? Reals<Real>{} : slope);
    }
  }
}

template <typename Real>
void differentiate_smoothed(Planes<Real> powers, Planes<Real> to, int64_t classes, int size, const Sums<Real> &sums,
                            const Real *weights, const Smoothing<Real> &by, double smoothing) {
  for (int p = 0; p < size; ++p) {
    const auto f = factors_of(by, smoothing, weights[p], sums.rest[p], sums.own[p], sums.target[p]);
    for (int64_t c = 0; c < classes; ++c) {
      const Real rival = powers.x[c * powers.pitch + p] * f.power - f.spread * by.of_class(c);
      const Real slope = c == sums.target[p] ? f.own : rival;
      to.x[c * to.pitch + p] = weights[p] == 0 ? Real{0} : slope;
    }
  }
}

// From the logits of so many elements to their gradient. The powers go to scratch, not where the gradient will be:
// that lies as far into a page as the logits, and the processor would take each store for one to the next load.
template <typename Real>
void differentiate_planes(Planes<Real> from, Planes<Real> scratch, Planes<Real> to, const topkloss_logits &of,
                          int size, Sums<Real> &sums, const Real *weight, const Smoothing<Real> &by) {
  sum_up<true>(from, of.classes, whole<Real>(size), sums, scratch);
  if (of.smoothing == 0) {
    differentiate(scratch, to, of.classes, whole<Real>(size), sums, weight);
  } else {
    differentiate_smoothed(scratch, to, of.classes, size, sums, weight, by, of.smoothing);
  }
}

template <typename T, typename Real>
void differentiate_tile(const Place<T> &at, Real *scratch, const Real *grad_output, const Smoothing<Real> &by,
                        T *gradient) {
  Sums<Real> sums;
  int index[TILE + 1];
  alignas(64) Real weight[TILE];
  const int selected = take_weights(at, grad_output, index, weight);
  const int64_t *const labels = at.of.targets + at.element;
  const Planes<Real> own{scratch, pitch_of_scratch()};
  const bool lies = lies_in_planes<T, Real>(at) && at.of.classes <= MANY;
  const bool dense = (lies ? DENSE<Real> : DENSE_IN_SCRATCH) * selected >= at.size && at.of.position_stride == 1;
  const int n = dense ? at.size : selected;
  for (int i = 0; i < n; ++i) {
    const int p = dense ? i : index[i];
    weight[i] = weight[p];
    sums.target[i] = weight[p] == 0 ? 0 : static_cast<Int<Real>>(labels[p]);
  }
  for (int i = n; i < whole<Real>(n); ++i) {
    weight[i] = 0;
    sums.target[i] = 0;
  }
  if (dense && lies) {
    const Planes<Real> to{reinterpret_cast<Real *>(gradient), at.of.class_stride};
    return differentiate_planes(planes_of(at, scratch), own, to, at.of, n, sums, weight, by);
  }
  load(at, dense ? nullptr : index, n, scratch);
  if (n > 0) differentiate_planes(own, own, own, at.of, n, sums, weight, by);
  save(scratch, at, dense ? nullptr : index, n, gradient);
}

template <typename T, typename Real>
void differentiate_rows(const Place<T> &at, Real *scratch, const Real *grad_output, const Smoothing<Real> &by,
                        T *gradient) {
  int index[TILE + 1];
  Real weights[TILE];
  take_weights(at, grad_output, index, weights);
  const int64_t classes = at.of.classes;
  for (int p = 0; p < at.size; ++p) {
    T *const row = gradient + p * at.of.position_stride;
    const Real weight = weights[p];
    if (weight == 0) {
      memset(row, 0, classes * sizeof(T));
      continue;
    }
    const int64_t target = at.of.targets[at.element + p];
    Real *const out = sizeof(T) == sizeof(Real) ? reinterpret_cast<Real *>(row) : scratch;
    const Real *const x = row_of(at.logits + p * at.of.position_stride, classes, scratch);
    const RowSums<Real> sums = sum_up_row<true>(x, classes, target, out);
    const auto f = factors_of(by, at.of.smoothing, weight, sums.rest, sums.own, target);
    if (at.of.smoothing == 0) {
#pragma omp simd
      for (int64_t c = 0; c < classes; ++c) out[c] *= f.power;
    } else {
      for (int64_t c = 0; c < classes; ++c) out[c] = out[c] * f.power - f.spread * by.of_class(c);
    }
    out[target] = f.own;
    if (sizeof(T) == sizeof(Real)) continue;
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) store(row[c], out[c]);
  }
}

template <typename T>
void gradient_of(const topkloss_logits &of, int64_t first, int64_t last, const void *grad_output, void *gradient) {
  using Real = Computing<T>;
  const Real *const weights = static_cast<const Real *>(grad_output);
  const Smoothing<Real> by(of);
  Scratch<Real> scratch(scratch_of(of));
  while (first < last) {
    const auto at = Place<T>::at(of, first, last, TILE);
    T *const to = static_cast<T *>(gradient) + at.offset;
    if (has_long_rows(of)) {
      differentiate_rows(at, scratch.numbers, weights, by, to);
    } else {
      differentiate_tile(at, scratch.numbers, weights, by, to);
    }
    first += at.size;
  }
}

}  // namespace

const CrossEntropyKernels TOPKLOSS_KERNELS[2][4] = {
    {
        {losses_of<float>, gradient_of<float>},
        {losses_of<double>, gradient_of<double>},
        {losses_of<bfloat16>, gradient_of<bfloat16>},
        {losses_of<float16>, gradient_of<float16>},
    },
    {
        {losses_by<float>, gradient_by<float>},
        {losses_by<double>, gradient_by<double>},
        {losses_by<bfloat16>, gradient_by<bfloat16>},
        {losses_by<float16>, gradient_by<float16>},
    },
};

}  // namespace topkloss
