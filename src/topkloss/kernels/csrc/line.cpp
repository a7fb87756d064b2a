// What counts on a line, what each element weighs by the interval of its group, and their sum.

#include "line.h"

#include <type_traits>
#include <vector>

#include "keys.h"

namespace topkloss {
namespace {

constexpr int LANES = 8;  // sums side by side

template <typename Score>
TOPKLOSS_FAST void count_block(const topkloss_line &line, int64_t first, int32_t size, topkloss_counted &counted) {
  alignas(64) double copy[BLOCK];
  const Score *const scores = static_cast<const Score *>(line.scores) + first;
  const uint8_t *const counts = line.counts == nullptr ? nullptr : line.counts + first;
  const double *const mass = masses_of(line, first, size, copy);
  int32_t nan = 0, number = 0, wrong = 0;
  double sum = 0;
  if (mass != nullptr) {
#pragma omp simd reduction(+ : sum, wrong) reduction(| : nan)
    for (int32_t i = 0; i < size; ++i) {
      sum += mass[i];
      wrong += !(mass[i] >= 0 && mass[i] <= std::numeric_limits<double>::max());
      nan |= mass[i] > 0 && scores[i] != scores[i];
    }
    for (int32_t i = 0; wrong > 0 && counted.wrong < 0; ++i) {
      if (!(mass[i] >= 0 && mass[i] <= std::numeric_limits<double>::max())) counted.wrong = first + i;
    }
    counted.mass += sum;
  } else if (counts != nullptr) {
    for (int32_t i = 0; i < size; ++i) {
      number += counts[i] != 0;
      nan |= counts[i] != 0 && scores[i] != scores[i];
    }
    counted.mass += number;
  } else {
    for (int32_t i = 0; i < size; ++i) nan |= scores[i] != scores[i];
    counted.mass += size;
  }
  counted.nan |= nan != 0;
}

// The mass above a score, and the lowest score above it.
struct Above {
  double mass = 0, lowest = std::numeric_limits<double>::infinity();
};

// The lowest of some scores that are above another one. Of their keys: compilers take no minimum of floats in vectors
// but by OpenMP's leave, and Clang begins that with the largest finite number.
template <typename Score>
TOPKLOSS_FAST Score lowest_above(const Score *scores, int32_t size, Score than) {
  const KeyOf<Score> infinite = key_of(std::numeric_limits<Score>::infinity());
  KeyOf<Score> lowest = infinite;
  for (int32_t i = 0; i < size; ++i) lowest = std::min(lowest, scores[i] > than ? key_of(scores[i]) : infinite);
  return score_of<Score>(lowest);
}

template <typename Score>
TOPKLOSS_FAST void above_block(const topkloss_line &line, int64_t first, int32_t size, double than, Above &above) {
  alignas(64) double copy_of_mass[BLOCK];
  alignas(64) Score copy[BLOCK];
  const double *const mass = masses_of(line, first, size, copy_of_mass);
  const Score *scores = scores_of(line, first, size, copy);
  const auto score = static_cast<Score>(than);
  int32_t number = 0;
  double sum = 0;
  if (mass == nullptr) {
    for (int32_t i = 0; i < size; ++i) number += scores[i] > score;
  } else {
    for (int32_t i = 0; i < size; ++i) copy[i] = mass[i] > 0 ? scores[i] : -std::numeric_limits<Score>::infinity();
    scores = copy;
#pragma omp simd reduction(+ : sum)
    for (int32_t i = 0; i < size; ++i) sum += scores[i] > score ? mass[i] : 0.0;
  }
  above.mass += sum + number;
  above.lowest = std::min(above.lowest, static_cast<double>(lowest_above(scores, size, score)));
}

// An interval in the types that are computed in: what an element of mass 1 weighs.
template <typename Score, typename Weight>
struct Rule {
  Score start, end;
  Weight whole, at_end, at_start, at_both;
  bool nan, from_the_largest;

  explicit Rule(const topkloss_interval &of)
      : start(static_cast<Score>(of.start)),
        end(static_cast<Score>(of.end)),
        whole(part(of, 1)),
        at_end(part(of, of.end_part)),
        at_start(part(of, of.start_part)),
        at_both(part(of, std::min(of.end_part, of.start_part))),
        nan(of.end != of.end),
        from_the_largest(start == std::numeric_limits<Score>::infinity() && of.start_part == 1) {}

  static Weight part(const topkloss_interval &of, double part) {
    return static_cast<Weight>(part > 0 ? part * of.scale : 0.0);
  }

  Weight operator()(Score score) const {
    if (nan) return std::numeric_limits<Weight>::quiet_NaN();
    const Weight inside = score == end ? at_end : (score > end ? whole : Weight{0});
    if (from_the_largest) return inside;
    const Weight border = score == end ? at_both : (score > end ? at_start : Weight{0});
    return score < start ? inside : (score == start ? border : Weight{0});
  }
};

// What each would weigh if it counted and its mass were 1.
template <typename Score, typename Weight>
TOPKLOSS_FAST void weigh_each(const Score *scores, const Rule<Score, Weight> &by, int32_t size, Weight *weights) {
  const Score start = by.start, end = by.end;
  const Weight whole = by.whole, at_end = by.at_end, at_start = by.at_start, at_both = by.at_both;
  if (by.nan) {
    for (int32_t i = 0; i < size; ++i) weights[i] = std::numeric_limits<Weight>::quiet_NaN();
  } else if (by.from_the_largest) {
    for (int32_t i = 0; i < size; ++i) weights[i] = scores[i] > end ? whole : (scores[i] == end ? at_end : Weight{0});
  } else {
    for (int32_t i = 0; i < size; ++i) {
      const Weight inside = scores[i] == end ? at_end : (scores[i] > end ? whole : Weight{0});
      const Weight border = scores[i] == end ? at_both : (scores[i] > end ? at_start : Weight{0});
      weights[i] = scores[i] < start ? inside : (scores[i] == start ? border : Weight{0});
    }
  }
}

// The rules by which the elements of a line weigh: one for all, or by an index one for each group.
template <typename Score, typename Weight>
struct Rules {
  const topkloss_line &line;
  const int64_t *index;  // null = one rule for all
  int64_t first;
  std::vector<Rule<Score, Weight>> rules;
  std::vector<Rule<Score, double>> wide;  // the same, where masses are multiplied with

  Rules(const topkloss_line &line, const int64_t *index, int64_t first, const topkloss_interval *intervals,
        int64_t number)
      : line(line), index(index), first(first), rules(intervals, intervals + number) {
    if (line.mass != nullptr) wide = {intervals, intervals + number};
  }

  // As if all counted with a mass of 1.
  template <typename Number>
  TOPKLOSS_FAST void each(int64_t at, int32_t size, const std::vector<Rule<Score, Number>> &by, Number *out) const {
    const Score *const scores = static_cast<const Score *>(line.scores) + at;
    if (index == nullptr) return weigh_each(scores, by[0], size, out);
    const auto groups = static_cast<uint64_t>(by.size());
    for (int32_t i = 0; i < size; ++i) {
      const auto group = static_cast<uint64_t>(index[at + i] - first);  // what does not count may be in none
      out[i] = group < groups ? by[group](scores[i]) : Number{0};
    }
  }

  // What the elements of a block weigh.
  TOPKLOSS_FAST void weigh(int64_t at, int32_t size, Weight *weights) const {
    if (line.mass == nullptr) {
      each(at, size, rules, weights);
      if (line.counts == nullptr) return;
      const uint8_t *const counts = line.counts + at;
      for (int32_t i = 0; i < size; ++i) weights[i] = counts[i] ? weights[i] : Weight{0};
      return;
    }
    alignas(64) double copy[BLOCK], weight[BLOCK];
    const double *const mass = masses_of(line, at, size, copy);
    each(at, size, wide, weight);
    for (int32_t i = 0; i < size; ++i) {
      weights[i] = mass[i] > 0 && weight[i] != 0 ? static_cast<Weight>(mass[i] * weight[i]) : Weight{0};
    }
  }
};

template <typename Weight>
TOPKLOSS_FAST double sum_block(const Weight *weights, const Weight *losses, int32_t size) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int32_t i = 0; i < size; ++i) {
    const double loss = weights[i] != 0 ? static_cast<double>(losses[i]) : 0.0;
    sum += static_cast<double>(weights[i]) * loss;
  }
  return sum;
}

// The elements of a line from one on, so many of them.
topkloss_line run_of(const topkloss_line &line, int64_t first, int64_t n) {
  const auto from = [first](const void *numbers, int64_t type) -> const void * {
    const int64_t bytes = first * (type == TOPKLOSS_FLOAT64 ? 8 : 4);
    return numbers == nullptr ? nullptr : static_cast<const char *>(numbers) + bytes;
  };
  return {from(line.scores, line.type), line.type, line.counts == nullptr ? nullptr : line.counts + first,
          from(line.mass, line.mass_type), line.mass_type, n, line.threads};
}

// Calls run(rules, line, first) for the whole line, or for each of its groups where they lie one after the other.
template <typename Score, typename Weight, typename Function>
void for_each_run(const topkloss_line &line, const topkloss_groups &groups, const topkloss_interval *intervals,
                  Function &&run) {
  const int64_t runs = groups.index == nullptr ? groups.number : 1, size = runs == 0 ? 0 : line.n / runs;
  const int64_t rules = groups.index == nullptr ? 1 : groups.number;
  for (int64_t i = 0; i < runs; ++i) {
    const topkloss_line own = run_of(line, i * size, size);
    const Rules<Score, Weight> by(own, groups.index, groups.first, intervals + i, rules);
    run(by, own, i * size);
  }
}

template <typename Score, typename Weight>
double sum_of(const topkloss_line &line, const topkloss_groups &groups, const topkloss_interval *intervals,
              const Weight *losses) {
  double sum = 0;
  for_each_run<Score, Weight>(line, groups, intervals, [&](auto &by, auto &own, int64_t offset) {
    std::vector<double> sums(tasks_of(own) * LANES);  // each in a line of the cache of its own
    for_each_block(own, [&](int64_t task, int64_t first, int32_t size) {
      alignas(64) Weight weights[BLOCK];
      by.weigh(first, size, weights);
      sums[task * LANES] += sum_block(weights, losses + offset + first, size);
    });
    for (const double part : sums) sum += part;
  });
  return sum;
}

template <typename Score, typename Weight>
void write_weights(const topkloss_line &line, const topkloss_groups &groups, const topkloss_interval *intervals,
                   Weight *weights) {
  for_each_run<Score, Weight>(line, groups, intervals, [&](auto &by, auto &own, int64_t offset) {
    for_each_block(own, [&](int64_t, int64_t first, int32_t size) {
      by.weigh(first, size, weights + offset + first);
    });
  });
}

// Calls run(i) for each element that counts, from the first to the last.
template <typename Mass, typename Function>
void for_each_counted(const topkloss_line &line, const Mass *mass, Function &&run) {
  for (int64_t i = 0; i < line.n; ++i) {
    if ((line.counts == nullptr || line.counts[i] != 0) && (mass == nullptr || mass[i] > 0)) run(i);
  }
}

template <typename Mass>
void find_groups(const topkloss_line &line, const Mass *mass, topkloss_groups &groups) {
  int64_t first = std::numeric_limits<int64_t>::max(), last = std::numeric_limits<int64_t>::min();
  for_each_counted(line, mass, [&](int64_t i) {
    first = std::min(first, groups.index[i]);
    last = std::max(last, groups.index[i]);
  });
  groups.first = first;
  const uint64_t more = static_cast<uint64_t>(last) - static_cast<uint64_t>(first);  // may be more than an int64_t holds
  const auto most = static_cast<uint64_t>(line.n);
  groups.number = first > last ? 0 : static_cast<int64_t>(std::min(more, most)) + 1;
}

template <typename Score, typename Mass>
void partition(const topkloss_line &line, const topkloss_groups &groups, int64_t *starts, Score *scores,
               Mass *masses) {
  const Score *const from = static_cast<const Score *>(line.scores);
  const Mass *const mass = static_cast<const Mass *>(line.mass);
  std::fill(starts, starts + groups.number + 1, 0);
  for_each_counted(line, mass, [&](int64_t i) { ++starts[groups.index[i] - groups.first + 1]; });
  for (int64_t group = 0; group < groups.number; ++group) starts[group + 1] += starts[group];
  std::vector<int64_t> next(starts, starts + groups.number);
  for_each_counted(line, mass, [&](int64_t i) {
    const int64_t to = next[groups.index[i] - groups.first]++;
    scores[to] = from[i];
    if (mass != nullptr) masses[to] = mass[i];
  });
}

// Calls run with a null pointer to the type named.
template <typename Function>
auto with_type(int64_t type, Function &&run) {
  return type == TOPKLOSS_FLOAT64 ? run(static_cast<double *>(nullptr)) : run(static_cast<float *>(nullptr));
}

template <typename Pointer>
using Pointed = std::remove_pointer_t<Pointer>;

}  // namespace
}  // namespace topkloss

using namespace topkloss;

void topkloss_count(const topkloss_line *line, topkloss_counted *counted) {
  std::vector<topkloss_counted> parts(tasks_of(*line), {0, 0, -1});
  with_type(line->type, [&](auto score) {
    for_each_block(*line, [&](int64_t task, int64_t first, int32_t size) {
      count_block<Pointed<decltype(score)>>(*line, first, size, parts[task]);
    });
  });
  *counted = {0, 0, -1};
  for (const auto &part : parts) {
    counted->mass += part.mass;
    counted->nan |= part.nan;
    if (counted->wrong < 0) counted->wrong = part.wrong;
  }
}

void topkloss_above(const topkloss_line *line, double score, double out[2]) {
  std::vector<Above> parts(tasks_of(*line));
  with_type(line->type, [&](auto type) {
    for_each_block(*line, [&](int64_t task, int64_t first, int32_t size) {
      above_block<Pointed<decltype(type)>>(*line, first, size, score, parts[task]);
    });
  });
  Above all;
  for (const auto &part : parts) {
    all.mass += part.mass;
    all.lowest = std::min(all.lowest, part.lowest);
  }
  out[0] = all.mass;
  out[1] = all.lowest;
}

void topkloss_find_groups(const topkloss_line *line, topkloss_groups *groups) {
  with_type(line->mass_type, [&](auto each) {
    find_groups(*line, static_cast<const Pointed<decltype(each)> *>(line->mass), *groups);
  });
}

void topkloss_partition(const topkloss_line *line, const topkloss_groups *groups, int64_t *starts, void *scores,
                        void *mass) {
  with_type(line->type, [&](auto score) {
    with_type(line->mass_type, [&](auto each) {
      partition(*line, *groups, starts, static_cast<decltype(score)>(scores), static_cast<decltype(each)>(mass));
    });
  });
}

void topkloss_weights(const topkloss_line *line, const topkloss_groups *groups, const topkloss_interval *intervals,
                      int64_t type, void *weights) {
  with_type(line->type, [&](auto score) {
    with_type(type, [&](auto weight) {
      write_weights<Pointed<decltype(score)>>(*line, *groups, intervals, static_cast<decltype(weight)>(weights));
    });
  });
}

double topkloss_weighted_sum(const topkloss_line *line, const topkloss_groups *groups,
                             const topkloss_interval *intervals, int64_t type, const void *losses) {
  return with_type(line->type, [&](auto score) {
    return with_type(type, [&](auto weight) {
      const auto *const of = static_cast<const Pointed<decltype(weight)> *>(losses);
      return sum_of<Pointed<decltype(score)>>(*line, *groups, intervals, of);
    });
  });
}
