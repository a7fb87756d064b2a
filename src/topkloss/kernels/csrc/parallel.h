// Work divided among threads: those of the OpenMP runtime that torch has loaded, never of a second one beside it.

#pragma once

#include <cstdint>

namespace topkloss {

// Whether the process has such a runtime.
bool shares_openmp();

// Calls run(context, task) once for each task in [0, tasks), on up to that many threads, and waits for all.
void run_tasks(int64_t tasks, void (*run)(void *, int64_t), void *context);

// The same for a function object.
template <typename Function>
void for_each_task(int64_t tasks, Function &&function) {
  run_tasks(tasks, [](void *context, int64_t task) { (*static_cast<Function *>(context))(task); }, &function);
}

// The part of n that falls to a task: [first, last).
struct Part {
  int64_t first, last;
};

inline Part part_of(int64_t n, int64_t task, int64_t tasks) {
  const int64_t each = n / tasks, more = n % tasks;
  const int64_t first = task * each + (task < more ? task : more);
  return {first, first + each + (task < more ? 1 : 0)};
}

}  // namespace topkloss
