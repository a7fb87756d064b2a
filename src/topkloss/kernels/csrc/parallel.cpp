#include "parallel.h"

#include <dlfcn.h>

#include <atomic>
#include <thread>
#include <vector>

namespace topkloss {
namespace {

// How compilers start a parallel region, in GNU's runtime and in LLVM's alike.
using StartRegion = void (*)(void (*)(void *), void *, unsigned threads, unsigned flags);

StartRegion loaded_runtime() {
  static const auto found = reinterpret_cast<StartRegion>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

// Tasks are taken one by one, so the answer does not depend on how many threads came.
struct Tasks {
  std::atomic<int64_t> next{0};
  int64_t number;
  void (*run)(void *, int64_t);
  void *context;

  void work() {
    for (int64_t task = next.fetch_add(1); task < number; task = next.fetch_add(1)) run(context, task);
  }
};

}  // namespace

bool shares_openmp() { return loaded_runtime() != nullptr; }

void run_tasks(int64_t number, void (*run)(void *, int64_t), void *context) {
  Tasks tasks{{0}, number, run, context};
  if (number <= 1) return tasks.work();
  if (const auto start = loaded_runtime()) {
    return start([](void *shared) { static_cast<Tasks *>(shared)->work(); }, &tasks, static_cast<unsigned>(number), 0);
  }
  std::vector<std::thread> others;
  for (int64_t i = 1; i < number; ++i) others.emplace_back(&Tasks::work, &tasks);
  tasks.work();
  for (auto &other : others) other.join();
}

}  // namespace topkloss
