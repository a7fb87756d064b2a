// The C interface of the native kernels: pointers, sizes and strides; no torch header, so one library serves every torch.
// What is computed, and why so, is in ../README.md. Nothing is checked here: the Python side has done so.

#ifndef TOPKLOSS_H
#define TOPKLOSS_H

#include <stdint.h>

#define TOPKLOSS_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// Of the logits and of their gradient. Losses, scores and class weights are double for double, float otherwise.
enum topkloss_type { TOPKLOSS_FLOAT32 = 0, TOPKLOSS_FLOAT64 = 1, TOPKLOSS_BFLOAT16 = 2, TOPKLOSS_FLOAT16 = 3 };

// Whether this processor has what the cross-entropy needs to be fast: "avx512", "avx2", "native", or "" where not.
TOPKLOSS_API const char *topkloss_vectors(void);

// Whether threads are those of the OpenMP runtime that the process has loaded already (1) or own ones (0).
TOPKLOSS_API int topkloss_shares_openmp(void);

// Elements side by side, to be ranked and weighed. What counts has a mass above 0 and, with a mask, a true one.
struct topkloss_line {
  const void *scores;     // float or double
  int64_t type;           // of the scores
  const uint8_t *counts;  // the mask; null = all true
  const void *mass;       // float or double; null = 1 each
  int64_t mass_type;
  int64_t n, threads;
};

// What stands on a line: the mass that counts, whether the score of something that counts is NaN, and the first element
// where the mask is true and the mass is negative, infinite or NaN (-1 = none; the rest is then not to be used).
struct topkloss_counted {
  double mass;
  int64_t nan, wrong;
};

// An interval of a ranking, the largest first. An element weighs its mass times the scale where its score is below the
// start and above the end, a part of that at either, nothing beyond; 0 whatever the scale. By an end that is NaN all
// that counts weighs NaN.
struct topkloss_interval {
  double end, end_part, scale, start, start_part;
};

// Which group each element of a line is in: `number` groups of the same size, one after the other; or, with an index,
// those that it names, from `first` on. What does not count may be in none.
struct topkloss_groups {
  const int64_t *index;
  int64_t first, number;
};

TOPKLOSS_API void topkloss_count(const struct topkloss_line *line, struct topkloss_counted *counted);

// What counts and is larger than a score; out: its mass, and its lowest score (inf where there is none).
TOPKLOSS_API void topkloss_above(const struct topkloss_line *line, double score, double out[2]);

// The largest score t such that what counts and is >= t holds the needed mass, more than 0; out: t, the mass above it,
// the mass at it. Where t is -inf and each mass 1, what does not count is among the last.
TOPKLOSS_API void topkloss_kth_largest(const struct topkloss_line *line, double need, double out[3]);

// Fills `first` and `number` so that what counts is in the groups from the one on, so many; at most n + 1 of them.
TOPKLOSS_API void topkloss_find_groups(const struct topkloss_line *line, struct topkloss_groups *groups);

// What counts, group after group by their index, in the order of the line: its scores and, where the line has them, its
// masses, in their types. starts: where each group begins, and at last their sum; `number` + 1 of them.
TOPKLOSS_API void topkloss_partition(const struct topkloss_line *line, const struct topkloss_groups *groups,
                                     int64_t *starts, void *scores, void *mass);

// What each element weighs, in float or double, by the interval of its group.
TOPKLOSS_API void topkloss_weights(const struct topkloss_line *line, const struct topkloss_groups *groups,
                                   const struct topkloss_interval *intervals, int64_t type, void *weights);

// The sum of weights, rounded to the type of the losses, times losses, in float or double. A loss of weight 0 never
// matters.
TOPKLOSS_API double topkloss_weighted_sum(const struct topkloss_line *line, const struct topkloss_groups *groups,
                                          const struct topkloss_interval *intervals, int64_t type, const void *losses);

// Logits of `samples` times `positions` elements and their targets. One of the two inner strides is 1.
struct topkloss_logits {
  const void *logits;
  int64_t type;
  int64_t samples, classes, positions;
  int64_t sample_stride, class_stride, position_stride;  // in numbers, not bytes
  const int64_t *targets;                                // (samples, positions), contiguous; or, where these are null,
  const void *probabilities;                             // laid as the logits, in the type of the losses
  const uint8_t *counts;                                 // the same, 0 = does not count; null = all count
  const void *class_weight;                              // (classes), of the smoothed part; null = 1 each
  double smoothing;                                      // in [0, 1]
  int64_t threads;
};

// The loss of each element, 0 where not counted; and the scores, null where classes are not smoothed: the losses without
// smoothing, of probabilities also without class weights and less the targets' own entropy. Returns where the first
// counted target is that is no class, or holds a probability below 0 (-1 = nowhere; the rest is then not to be used).
TOPKLOSS_API int64_t topkloss_cross_entropy(const struct topkloss_logits *of, void *losses, void *scores);

// The gradient of the sum of the losses times grad_output, which has one number for each element in the type of the
// losses; in the logits' own type and strides, and it may be the logits themselves.
TOPKLOSS_API void topkloss_cross_entropy_gradient(const struct topkloss_logits *of, const void *grad_output,
                                                  void *gradient);

#ifdef __cplusplus
}
#endif

#endif
