// How logits lie while they are worked on: tiles that stay in the cache, with the element along the vector and the
// classes one after the other ("planes"); a row of many classes by itself. And the sums that softmax is made of.
//
// Nothing of the standard library is used here: a function of it that two builds share would be linked from either.

#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "maths.h"
#include "topkloss.h"

namespace topkloss {
namespace {

constexpr int TILE = 256;     // elements of a tile, at most
constexpr int FEW = 8;        // classes up to which the planes of a tile are read side by side
constexpr int MANY = 32;      // classes up to which a tile is differentiated where it lies; more planes evict each other
constexpr int LONG_ROW = 48;  // classes from which on a row fills vectors by itself
// A tile is computed whole where one of so many is selected: whole vectors then cost no more than packing the few.
template <typename Real>
constexpr int DENSE = LANES<Real> >= 8 ? 5 : 2;
constexpr int DENSE_IN_SCRATCH = 2;

// Memory for the tiles that are not used where they lie.
template <typename Real>
struct Scratch {
  Real *numbers;

  explicit Scratch(int64_t size)
      : numbers(static_cast<Real *>(aligned_alloc(64, (size * sizeof(Real) + 127) / 64 * 64))) {
    if (numbers == nullptr) abort();
  }
  ~Scratch() { free(numbers); }
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;
};

// Logits as planes: class c of element p is x[c * pitch + p]; whole vectors of elements may be read and written.
template <typename Real>
struct Planes {
  Real *x;
  int64_t pitch;
};

// What softmax and loss of the elements of a tile are made of.
template <typename Real>
struct Sums {
  alignas(64) Int<Real> target[TILE];
  alignas(64) Real most[TILE];   // the largest logit
  alignas(64) Real rest[TILE];   // the sum of exp(x - most) over all classes but the target's
  alignas(64) Real own[TILE];    // exp(x - most) of the target
  alignas(64) Real below[TILE];  // most - x of the target
};

template <typename Real>
void find_most(Planes<Real> of, int64_t classes, int size, Real *most) {
  if (classes <= FEW) {
    for (int p = 0; p < size; p += LANES<Real>) {
      auto largest = load_vector<Reals<Real>>(of.x + p);
      for (int64_t c = 1; c < classes; ++c) {
        const auto now = load_vector<Reals<Real>>(of.x + c * of.pitch + p);
        largest = now > largest ? now : largest;
      }
      store_vector(most + p, largest);
    }
    return;
  }
  memcpy(most, of.x, size * sizeof(Real));
  for (int64_t c = 1; c < classes; ++c) {
    const Real *const x = of.x + c * of.pitch;
    for (int p = 0; p < size; p += LANES<Real>) {
      const auto now = load_vector<Reals<Real>>(x + p), before = load_vector<Reals<Real>>(most + p);
      store_vector(most + p, now > before ? now : before);
    }
  }
}

// Fills the sums, given the targets; writes exp(x - most) to `out` where that is wanted, which may be scratch that holds
// the logits. What lies where the next tile will be is asked for meanwhile: a plane of it is too short for the
// processor to foresee.
template <bool WRITES, typename Real>
void sum_up(Planes<Real> of, int64_t classes, int size, Sums<Real> &sums, Planes<Real> out) {
  find_most(of, classes, size, sums.most);
  for (int p = 0; p < size; p += LANES<Real>) {
    const auto most = load_vector<Reals<Real>>(sums.most + p);
    auto to_target = load_vector<Ints<Real>>(sums.target + p);  // how many classes on
    Reals<Real> rest{}, some{}, own{}, above{};
    for (int64_t c = 0; c < classes; ++c) {
      const auto x = load_vector<Reals<Real>>(of.x + c * of.pitch + p) - most;
      __builtin_prefetch(of.x + c * of.pitch + p + size);
      const auto power = exp_of(x);
      const auto is_target = to_target == 0;
      to_target -= 1;
      some += is_target ? Reals<Real>{} : power;
      own = is_target ? power : own;
      above = is_target ? x : above;
      if (WRITES) store_vector(out.x + c * out.pitch + p, power);
      if (sizeof(Real) == 8 && c % 8 == 7) {  // few numbers are added to a large one: float64 is held to 4 ulp
        rest += some;
        some = Reals<Real>{};
      }
    }
    store_vector(sums.rest + p, rest + some);
    store_vector(sums.own + p, own);
    store_vector(sums.below + p, -above);
  }
}

// The logarithm of the sum of exp(x - most): of 1 + u, where u is summed without the largest term, so that nothing
// cancels.
template <typename Real>
inline Reals<Real> log_sum_of(Reals<Real> below, Reals<Real> rest, Reals<Real> own) {
  const auto u = below > Real{0} ? (rest - Real{1}) + own : rest;
  return log1p_of(u < Real{0} ? Reals<Real>{} : u);
}

// How a run of elements lies in memory.
template <typename T>
struct Place {
  const topkloss_logits &of;
  const T *logits;
  int64_t offset;   // of its first element's first logit
  int64_t element;  // the number of its first element
  int size;

  static Place at(const topkloss_logits &of, int64_t first, int64_t last, int most) {
    const int64_t sample = first / of.positions, place = first % of.positions;
    int64_t size = of.positions - place < last - first ? of.positions - place : last - first;
    size = size < most ? size : most;
    const int64_t offset = sample * of.sample_stride + place * of.position_stride;
    return {of, static_cast<const T *>(of.logits) + offset, offset, first, static_cast<int>(size)};
  }
};

// Whether a tile can be used where it lies, in whole vectors.
template <typename T, typename Real>
inline bool lies_in_planes(const Place<T> &at) {
  return sizeof(T) == sizeof(Real) && at.of.position_stride == 1 && at.size % LANES<Real> == 0;
}

// So many elements as whole vectors.
template <typename Real>
inline int whole(int size) {
  return (size + LANES<Real> - 1) / LANES<Real> * LANES<Real>;
}

inline int64_t pitch_of_scratch() { return TILE + 16; }  // no power of two: neighbours in a row share no cache set

// The chosen elements of a tile as planes in scratch; all of them without an index.
template <typename T, typename Real>
void load(const Place<T> &from, const int *index, int n, Real *scratch) {
  const int64_t classes = from.of.classes, pitch = pitch_of_scratch();
  const int64_t along = from.of.position_stride, across = from.of.class_stride;
  if (across == 1) {
    for (int i = 0; i < n; ++i) {
      const T *const row = from.logits + (index == nullptr ? i : index[i]) * along;
      for (int64_t c = 0; c < classes; ++c) scratch[c * pitch + i] = number(row[c]);
    }
    return;
  }
  for (int64_t c = 0; c < classes; ++c) {
    const T *const plane = from.logits + c * across;
    Real *const to = scratch + c * pitch;
    for (int i = 0; i < from.size; i += 64 / sizeof(T)) __builtin_prefetch(plane + from.size + i);  // the next tile's
    if (index == nullptr) {
#pragma omp simd
      for (int i = 0; i < n; ++i) to[i] = number(plane[i]);
    } else {
      for (int i = 0; i < n; ++i) to[i] = number(plane[index[i]]);
    }
  }
}

// The other way round; what is not chosen becomes 0.
template <typename T, typename Real>
void save(const Real *scratch, const Place<T> &at, const int *index, int n, T *gradient) {
  const int64_t classes = at.of.classes, pitch = pitch_of_scratch();
  const int64_t along = at.of.position_stride, across = at.of.class_stride;
  if (across == 1) {
    for (int p = 0; n < at.size && p < at.size; ++p) memset(gradient + p * along, 0, classes * sizeof(T));
    for (int i = 0; i < n; ++i) {
      T *const row = gradient + (index == nullptr ? i : index[i]) * along;
      for (int64_t c = 0; c < classes; ++c) store(row[c], scratch[c * pitch + i]);
    }
    return;
  }
  for (int64_t c = 0; c < classes; ++c) {
    T *const plane = gradient + c * across;
    const Real *const from = scratch + c * pitch;
    if (index == nullptr) {
#pragma omp simd
      for (int i = 0; i < n; ++i) store(plane[i], from[i]);
    } else {
      memset(plane, 0, at.size * sizeof(T));
      for (int i = 0; i < n; ++i) store(plane[index[i]], from[i]);
    }
  }
}

// The smoothed part of a loss: what class weights and the share of smoothing make of it.
template <typename Real>
struct Smoothing {
  const Real *weight;  // null = 1 each
  Real each, whole;    // the share of a class; the sum of the weights

  explicit Smoothing(const topkloss_logits &of)
      : weight(static_cast<const Real *>(of.class_weight)), each(static_cast<Real>(of.smoothing / of.classes)) {
    double sum = weight == nullptr ? of.classes : 0.0;
    for (int64_t c = 0; weight != nullptr && c < of.classes; ++c) sum += weight[c];
    whole = static_cast<Real>(sum);
  }

  Real of_class(int64_t c) const { return weight == nullptr ? Real{1} : weight[c]; }
  // Relative to the target's own weight, which is its mass; of weight 0 nothing counts.
  Real relative(int64_t target) const {
    const Real own = of_class(target);
    return own > 0 ? each / own : each;
  }
};

// The logits of a tile, where they lie or in scratch.
template <typename T, typename Real>
Planes<Real> planes_of(const Place<T> &at, Real *scratch) {
  if (lies_in_planes<T, Real>(at)) {
    return {const_cast<Real *>(reinterpret_cast<const Real *>(at.logits)), at.of.class_stride};
  }
  load(at, nullptr, at.size, scratch);
  return {scratch, pitch_of_scratch()};
}

// One row of many classes: the same sums.
template <typename Real>
struct RowSums {
  Real most, rest, own, below;
};

// Lane i of a vector holds i.
template <typename Real>
inline Ints<Real> lane_numbers() {
  Ints<Real> lane{};
  for (int i = 0; i < LANES<Real>; ++i) lane[i] = i;
  return lane;
}

// The largest of a row, of a vector at least. Two maxima side by side: one would wait for itself.
template <typename Real>
Real most_of(const Real *x, int64_t classes) {
  auto even = load_vector<Reals<Real>>(x), odd = load_vector<Reals<Real>>(x + classes - LANES<Real>);
  int64_t c = 0;
  for (; c + 2 * LANES<Real> <= classes; c += 2 * LANES<Real>) {
    const auto one = load_vector<Reals<Real>>(x + c), other = load_vector<Reals<Real>>(x + c + LANES<Real>);
    even = one > even ? one : even;
    odd = other > odd ? other : odd;
  }
  if (c + LANES<Real> <= classes) {
    const auto one = load_vector<Reals<Real>>(x + c);
    even = one > even ? one : even;
  }
  const auto both = even > odd ? even : odd;
  Real most = both[0];
  for (int i = 1; i < LANES<Real>; ++i) most = both[i] > most ? both[i] : most;
  return most;
}

// The sum of exp(x - most) over all classes of a row but the target; writes each to `out` where that is wanted, which
// may be the row. The next row is asked for meanwhile: the processor foresees nothing beyond a page.
template <bool WRITES, typename Real>
Real sum_rivals(const Real *x, int64_t classes, int64_t target, Real most, Real *out) {
  const int64_t whole = classes / LANES<Real> * LANES<Real>, last = classes - LANES<Real>;
  const auto end = load_vector<Reals<Real>>(x + last);  // of a whole vector, some of which is summed already
  auto to_target = static_cast<Int<Real>>(target) - lane_numbers<Real>();
  Reals<Real> sums{};
  for (int64_t c = 0; c < whole; c += LANES<Real>) {
    __builtin_prefetch(x + classes + c);
    const auto power = exp_of(load_vector<Reals<Real>>(x + c) - most);
    sums += to_target == 0 ? Reals<Real>{} : power;
    to_target -= LANES<Real>;
    if (WRITES) store_vector(out + c, power);
  }
  if (whole < classes) {
    const auto power = exp_of(end - most);
    const auto place = lane_numbers<Real>() + static_cast<Int<Real>>(last);
    const auto taken = (place < static_cast<Int<Real>>(whole)) | (place == static_cast<Int<Real>>(target));
    sums += taken ? Reals<Real>{} : power;
    if (WRITES) store_vector(out + last, power);
  }
  Real sum = 0;
  for (int i = 0; i < LANES<Real>; ++i) sum += sums[i];
  return sum;
}

template <bool WRITES, typename Real>
RowSums<Real> sum_up_row(const Real *x, int64_t classes, int64_t target, Real *out) {
  const Real most = most_of(x, classes), below = most - x[target];
  const Real rest = sum_rivals<WRITES>(x, classes, target, most, out);
  return {most, rest, exp_of(Reals<Real>{} - below)[0], below};
}

// A row as numbers: where it lies, or in scratch.
template <typename T, typename Real>
const Real *row_of(const T *logits, int64_t classes, Real *scratch) {
  if (sizeof(T) == sizeof(Real)) return reinterpret_cast<const Real *>(logits);
#pragma omp simd
  for (int64_t c = 0; c < classes; ++c) scratch[c] = number(logits[c]);
  return scratch;
}

// Whether each element is a row that is computed by itself.
inline bool has_long_rows(const topkloss_logits &of) { return of.class_stride == 1 && of.classes >= LONG_ROW; }

inline int64_t scratch_of(const topkloss_logits &of) {
  return has_long_rows(of) ? of.classes : of.classes * pitch_of_scratch();
}

// What each loss of a tile is multiplied with, 0 where not counted; which elements have one, and how many they are.
template <typename T, typename Real>
int take_weights(const Place<T> &at, const Real *grad_output, int *index, Real *weight) {
  memcpy(weight, grad_output + at.element, at.size * sizeof(Real));
  if (at.of.counts != nullptr) {
    const uint8_t *const counts = at.of.counts + at.element;
    for (int p = 0; p < at.size; ++p) weight[p] = counts[p] != 0 ? weight[p] : Real{0};
  }
  int selected = 0;
  for (int p = 0; p < at.size; ++p) {
    index[selected] = p;
    selected += weight[p] != 0;
  }
  return selected;
}

}  // namespace
}  // namespace topkloss
