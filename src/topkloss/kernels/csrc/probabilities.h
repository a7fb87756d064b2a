// The cross-entropy of elements whose target is a probability for each class. What is computed is in ../README.md.
//
// The class that has more than half of an element's target, if one has, is its anchor: exp is summed without it, as the
// target of a class index is left out, so that a target of one class alone gives the same bits.

#pragma once

#include "tiles.h"

namespace topkloss {
namespace {

// What the targets of a tile come to.
template <typename Real>
struct Shares {
  alignas(64) Real total[TILE];    // the sum of t
  alignas(64) Real entropy[TILE];  // the sum of t log t
  alignas(64) Real others[TILE];   // the sum of w t over all classes but the anchor
  alignas(64) Real own[TILE];      // w t of the anchor
  alignas(64) Real least[TILE];    // the least t
};

// t log t; 0 of 0, and of what is less than a normal number or none.
inline Reals<float> entropy_of(Reals<float> t) {
  const Reals<float> normal = t > 1.17549435e-38f ? t : Reals<float>{} + 1.0f;
  return normal * log_of(normal);
}

inline Reals<double> entropy_of(Reals<double> t) {
  Reals<double> y{};
  for (int i = 0; i < LANES<double>; ++i) {
    if (t[i] > 0 && t[i] != 1) y[i] = t[i] * __builtin_log(t[i]);
  }
  return y;
}

// Finds the anchors (-1 = none) and sums the targets up; with `SCORES` also what only losses and scores are made of.
template <bool SCORES, typename Real>
void find_anchors(Planes<Real> t, int64_t classes, int size, const Smoothing<Real> &by, Int<Real> *anchors,
                  Shares<Real> &shares) {
  for (int p = 0; p < size; p += LANES<Real>) {
    Ints<Real> anchor = Ints<Real>{} - 1;
    Reals<Real> total{}, entropy{}, others{}, own{}, least{};
    for (int64_t c = 0; c < classes; ++c) {
      const auto share = load_vector<Reals<Real>>(t.x + c * t.pitch + p);
      const auto weighed = share * by.of_class(c);
      const auto is_anchor = (share > Real{0.5}) & (anchor < 0);
      anchor = is_anchor ? Ints<Real>{} + static_cast<Int<Real>>(c) : anchor;
      own = is_anchor ? weighed : own;
      others += is_anchor ? Reals<Real>{} : weighed;
      if (!SCORES) continue;
      total += share;
      entropy += entropy_of(share);
      least = share < least ? share : least;
    }
    store_vector(anchors + p, anchor);
    store_vector(shares.others + p, others);
    store_vector(shares.own + p, own);
    if (!SCORES) continue;
    store_vector(shares.total + p, total);
    store_vector(shares.entropy + p, entropy);
    store_vector(shares.least + p, least);
  }
}

// What lies between the logits of a tile and their largest, by the targets; and evenly, by the class weights alone.
template <typename Real>
struct Drops {
  alignas(64) Real score[TILE];   // the sum of t (most - x)
  alignas(64) Real loss[TILE];    // the sum of w t (most - x)
  alignas(64) Real evenly[TILE];  // the sum of w (most - x)
};

template <typename Real>
void sum_drops_by(Planes<Real> of, Planes<Real> t, int64_t classes, int size, const Smoothing<Real> &by,
                  const Real *most, Drops<Real> &drops) {
  for (int p = 0; p < size; p += LANES<Real>) {
    const auto largest = load_vector<Reals<Real>>(most + p);
    Reals<Real> score{}, loss{}, evenly{};
    for (int64_t c = 0; c < classes; ++c) {
      const auto share = load_vector<Reals<Real>>(t.x + c * t.pitch + p);
      const auto drop = largest - load_vector<Reals<Real>>(of.x + c * of.pitch + p);
      const auto part = share == Real{0} ? Reals<Real>{} : share * drop;  // 0 of an infinite drop, too
      score += part;
      loss += by.of_class(c) * part;
      evenly += by.of_class(c) * drop;
    }
    store_vector(drops.score + p, score);
    store_vector(drops.loss + p, loss);
    store_vector(drops.evenly + p, evenly);
  }
}

// A row of targets: the class that has more than half (-1 = none), and the sums of the others and of its own.
template <typename Real>
struct RowShares {
  int64_t anchor;
  Real others, own;
};

template <typename Real>
RowShares<Real> shares_of_row(const Real *t, int64_t classes, const Smoothing<Real> &by) {
  int64_t anchor = -1;
  for (int64_t c = 0; c < classes && anchor < 0; ++c) anchor = t[c] > Real{0.5} ? c : -1;
  Real others = 0;
  const int64_t end = anchor < 0 ? classes : anchor;  // around the anchor, which is not subtracted
  const auto add = [&](int64_t first, int64_t last) {
    if (by.weight == nullptr) {
#pragma omp simd reduction(+ : others)
      for (int64_t c = first; c < last; ++c) others += t[c];
    } else {
#pragma omp simd reduction(+ : others)
      for (int64_t c = first; c < last; ++c) others += by.weight[c] * t[c];
    }
  };
  add(0, end);
  add(end + 1, classes);
  return {anchor, others, anchor < 0 ? Real{0} : by.of_class(anchor) * t[anchor]};
}

// The sums of exp of a row without its anchor; without one, without nothing.
template <bool WRITES, typename Real>
RowSums<Real> sum_up_row_around(const Real *x, int64_t classes, int64_t anchor, Real *out) {
  if (anchor >= 0) return sum_up_row<WRITES>(x, classes, anchor, out);
  const Real most = most_of(x, classes);
  return {most, sum_rivals<WRITES>(x, classes, int64_t{-1}, most, out), Real{0}, Real{1}};
}

// All sums of a tile whose elements are rows of many classes.
template <typename T, typename Real>
void sum_up_rows_by(const Place<T> &at, const Real *targets, Real *scratch, const Smoothing<Real> &by,
                    Sums<Real> &sums, Shares<Real> &shares, Drops<Real> &drops) {
  const int64_t classes = at.of.classes, whole = classes / LANES<Real> * LANES<Real>;
  const uint8_t *const counts = at.of.counts == nullptr ? nullptr : at.of.counts + at.element;
  for (int p = 0; p < ::topkloss::whole<Real>(at.size); ++p) {
    sums.rest[p] = sums.own[p] = sums.below[p] = 0;
    shares.total[p] = shares.entropy[p] = shares.others[p] = shares.own[p] = shares.least[p] = 0;
    drops.score[p] = drops.loss[p] = drops.evenly[p] = 0;
    if (p >= at.size || (counts != nullptr && counts[p] == 0)) continue;
    const Real *const x = row_of(at.logits + p * at.of.position_stride, classes, scratch);
    const Real *const t = targets + p * at.of.position_stride;
    const auto row = shares_of_row(t, classes, by);
    const auto own = sum_up_row_around<false>(x, classes, row.anchor, static_cast<Real *>(nullptr));
    sums.rest[p] = own.rest;
    sums.own[p] = own.own;
    sums.below[p] = own.below;
    shares.others[p] = row.others;
    shares.own[p] = row.own;
    Reals<Real> total{}, entropy{}, least{}, score{}, loss{}, evenly{};
    for (int64_t c = 0; c < classes; c += LANES<Real>) {
      Reals<Real> share{}, drop{}, weight = Reals<Real>{} + Real{1};
      const auto bytes = (c < whole ? LANES<Real> : classes - whole) * sizeof(Real);
      memcpy(&share, t + c, bytes);
      if (by.weight != nullptr) memcpy(&weight, by.weight + c, bytes);
      drop += own.most;
      if (c < whole) {
        drop -= load_vector<Reals<Real>>(x + c);
      } else {
        for (int i = 0; i < LANES<Real>; ++i) drop[i] = c + i < classes ? own.most - x[c + i] : Real{0};
      }
      const auto part = share == Real{0} ? Reals<Real>{} : share * drop;
      total += share;
      entropy += entropy_of(share);
      least = share < least ? share : least;
      score += part;
      loss += weight * part;
      evenly += weight * drop;
    }
    for (int i = 0; i < LANES<Real>; ++i) {
      shares.total[p] += total[i];
      shares.entropy[p] += entropy[i];
      shares.least[p] = least[i] < shares.least[p] ? least[i] : shares.least[p];
      drops.score[p] += score[i];
      drops.loss[p] += loss[i];
      drops.evenly[p] += evenly[i];
    }
  }
}

// Losses and scores of a tile, 0 where not counted; finds the first counted element that has a negative target.
template <typename T, typename Real>
void loss_tile_by(const Place<T> &at, const Place<Real> &targets, Real *scratch, const Smoothing<Real> &by,
                  Real *losses, Real *scores, int64_t &illegal) {
  Sums<Real> sums;
  Shares<Real> shares;
  Drops<Real> drops;
  const int64_t classes = at.of.classes;
  const int n = whole<Real>(at.size);
  if (has_long_rows(at.of)) {
    sum_up_rows_by(at, targets.logits, scratch, by, sums, shares, drops);
  } else {
    const Planes<Real> x = planes_of(at, scratch), t = planes_of(targets, scratch + classes * pitch_of_scratch());
    find_anchors<true>(t, classes, n, by, sums.target, shares);
    sum_up<false>(x, classes, n, sums, x);
    for (int p = 0; p < n; ++p) sums.below[p] = sums.target[p] < 0 ? Real{1} : sums.below[p];
    sum_drops_by(x, t, classes, n, by, sums.most, drops);
  }
  const Real hard = static_cast<Real>(1 - at.of.smoothing), each = by.each;
  for (int p = 0; p < n; p += LANES<Real>) {
    const auto from = [&](const Real *numbers) { return load_vector<Reals<Real>>(numbers + p); };
    const auto log_sum = log_sum_of<Real>(from(sums.below), from(sums.rest), from(sums.own));
    const auto loss = from(drops.loss) + (from(shares.own) + from(shares.others)) * log_sum;
    const auto evenly = from(drops.evenly) + by.whole * log_sum;
    store_vector(drops.score + p, from(drops.score) + from(shares.total) * log_sum + from(shares.entropy));
    store_vector(drops.loss + p, each == Real{0} ? loss : hard * loss + each * evenly);
  }
  const uint8_t *const counts = at.of.counts == nullptr ? nullptr : at.of.counts + at.element;
  for (int p = 0; p < at.size; ++p) {
    const bool counted = counts == nullptr || counts[p] != 0;
    losses[p] = counted ? drops.loss[p] : Real{0};
    scores[p] = counted ? drops.score[p] : Real{0};
    if (counted && shares.least[p] < 0 && illegal < 0) illegal = at.element + p;
  }
}

// Factors of the gradient of one element: of exp, and what the anchor's comes to.
template <typename Real>
struct AnchorFactors {
  Real power, anchor;
};

template <typename Real>
AnchorFactors<Real> factors_by(const Smoothing<Real> &by, Real hard, Real weight, Real rest, Real own, Real others,
                               Real target, int64_t anchor) {
  const Real sum = rest + own;
  const Real all = hard * (others + target) + by.each * by.whole, power = weight * all / sum;
  if (anchor < 0) return {power, Real{0}};
  const Real own_weight = by.of_class(anchor);
  const Real more = hard * others + by.each * (by.whole - own_weight);  // what the target gives to the other classes
  const Real taken = hard * target + by.each * own_weight;
  // p_y all - taken, of which neither side is near to the other
  const Real slope = more == 0 ? -(rest * power) : own < rest ? own * power - weight * taken : weight * more - rest * power;
  return {power, slope};
}

// From the logits and targets of so many elements to the gradient.
template <typename Real>
void differentiate_planes_by(Planes<Real> from, Planes<Real> t, Planes<Real> scratch, Planes<Real> to,
                             const topkloss_logits &of, int size, Sums<Real> &sums, const Real *weights,
                             const Smoothing<Real> &by) {
  Shares<Real> shares;
  alignas(64) Real power[TILE], anchor[TILE];
  const int n = whole<Real>(size);
  const Real hard = static_cast<Real>(1 - of.smoothing);
  find_anchors<false>(t, of.classes, n, by, sums.target, shares);
  sum_up<true>(from, of.classes, n, sums, scratch);
  for (int p = 0; p < n; ++p) {
    const auto f = factors_by(by, hard, weights[p], sums.rest[p], sums.own[p], shares.others[p], shares.own[p],
                              int64_t{sums.target[p]});
    power[p] = f.power;
    anchor[p] = f.anchor;
  }
  for (int p = 0; p < n; p += LANES<Real>) {
    const auto anchors = load_vector<Ints<Real>>(sums.target + p);
    const auto weight = load_vector<Reals<Real>>(weights + p), each = load_vector<Reals<Real>>(power + p);
    const auto own = load_vector<Reals<Real>>(anchor + p);
    for (int64_t c = 0; c < of.classes; ++c) {
      const auto share = hard * load_vector<Reals<Real>>(t.x + c * t.pitch + p) + by.each;
      const auto slope = load_vector<Reals<Real>>(scratch.x + c * scratch.pitch + p) * each -
                         weight * (by.of_class(c) * share);
      const auto now = anchors == static_cast<Int<Real>>(c) ? own : slope;
      store_vector(to.x + c * to.pitch + p, weight == Real{0} ? Reals<Real>{} : now);
    }
  }
}

template <typename T, typename Real>
void differentiate_tile_by(const Place<T> &at, const Place<Real> &targets, Real *scratch, const Real *grad_output,
                           const Smoothing<Real> &by, T *gradient) {
  Sums<Real> sums;
  int index[TILE + 1];
  alignas(64) Real weight[TILE];
  const int selected = take_weights(at, grad_output, index, weight);
  const Planes<Real> own{scratch, pitch_of_scratch()};
  Real *const beside = scratch + at.of.classes * pitch_of_scratch();
  const bool lies = lies_in_planes<T, Real>(at) && at.of.classes <= MANY;
  const bool dense = (lies ? DENSE<Real> : DENSE_IN_SCRATCH) * selected >= at.size && at.of.position_stride == 1;
  const int n = dense ? at.size : selected;
  for (int i = 0; i < n && !dense; ++i) weight[i] = weight[index[i]];
  for (int i = n; i < whole<Real>(n); ++i) weight[i] = 0;
  if (dense && lies) {
    const Planes<Real> to{reinterpret_cast<Real *>(gradient), at.of.class_stride};
    const Planes<Real> x = planes_of(at, scratch), t = planes_of(targets, beside);
    return differentiate_planes_by(x, t, own, to, at.of, n, sums, weight, by);
  }
  load(at, dense ? nullptr : index, n, scratch);
  if (n > 0) {
    load(targets, dense ? nullptr : index, n, beside);
    differentiate_planes_by(own, Planes<Real>{beside, pitch_of_scratch()}, own, own, at.of, n, sums, weight, by);
  }
  save(scratch, at, dense ? nullptr : index, n, gradient);
}

template <typename T, typename Real>
void differentiate_rows_by(const Place<T> &at, const Real *targets, Real *scratch, const Real *grad_output,
                           const Smoothing<Real> &by, T *gradient) {
  int index[TILE + 1];
  Real weights[TILE];
  take_weights(at, grad_output, index, weights);
  const int64_t classes = at.of.classes;
  const Real hard = static_cast<Real>(1 - at.of.smoothing);
  for (int p = 0; p < at.size; ++p) {
    T *const row = gradient + p * at.of.position_stride;
    const Real weight = weights[p];
    if (weight == 0) {
      memset(row, 0, classes * sizeof(T));
      continue;
    }
    const Real *const t = targets + p * at.of.position_stride;
    Real *const out = sizeof(T) == sizeof(Real) ? reinterpret_cast<Real *>(row) : scratch;
    const Real *const x = row_of(at.logits + p * at.of.position_stride, classes, scratch);
    const auto shares = shares_of_row(t, classes, by);
    const auto sums = sum_up_row_around<true>(x, classes, shares.anchor, out);
    const auto f = factors_by(by, hard, weight, sums.rest, sums.own, shares.others, shares.own, shares.anchor);
    if (by.weight == nullptr) {
#pragma omp simd
      for (int64_t c = 0; c < classes; ++c) out[c] = out[c] * f.power - weight * (hard * t[c] + by.each);
    } else {
#pragma omp simd
      for (int64_t c = 0; c < classes; ++c) {
        out[c] = out[c] * f.power - weight * (by.weight[c] * (hard * t[c] + by.each));
      }
    }
    if (shares.anchor >= 0) out[shares.anchor] = f.anchor;
    if (sizeof(T) == sizeof(Real)) continue;
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) store(row[c], out[c]);
  }
}

// Runs over the tiles of a range: logits and, in the same place, their targets.
template <typename T, typename Tile>
void for_each_tile_by(const topkloss_logits &of, int64_t first, int64_t last, Tile &&tile) {
  using Real = Computing<T>;
  topkloss_logits targets = of;
  targets.logits = of.probabilities;
  Scratch<Real> scratch(2 * scratch_of(of));
  while (first < last) {
    const auto at = Place<T>::at(of, first, last, TILE);
    tile(at, Place<Real>::at(targets, first, last, TILE), scratch.numbers);
    first += at.size;
  }
}

template <typename T>
void losses_by(const topkloss_logits &of, int64_t first, int64_t last, void *losses, void *scores, int64_t &illegal) {
  using Real = Computing<T>;
  const Smoothing<Real> by(of);
  for_each_tile_by<T>(of, first, last, [&](const Place<T> &at, const Place<Real> &targets, Real *scratch) {
    loss_tile_by(at, targets, scratch, by, static_cast<Real *>(losses) + at.element,
                 static_cast<Real *>(scores) + at.element, illegal);
  });
}

template <typename T>
void gradient_by(const topkloss_logits &of, int64_t first, int64_t last, const void *grad_output, void *gradient) {
  using Real = Computing<T>;
  const Smoothing<Real> by(of);
  for_each_tile_by<T>(of, first, last, [&](const Place<T> &at, const Place<Real> &targets, Real *scratch) {
    T *const to = static_cast<T *>(gradient) + at.offset;
    const Real *const weights = static_cast<const Real *>(grad_output);
    if (has_long_rows(of)) {
      differentiate_rows_by(at, targets.logits, scratch, weights, by, to);
    } else {
      differentiate_tile_by(at, targets, scratch, weights, by, to);
    }
  });
}

}  // namespace
}  // namespace topkloss
