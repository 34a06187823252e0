// The threads of a call and their CPUs (csrc/cpu/ops/own_cpus.h), for test_shared_cpu.py: on a system of this file's
// own, whose CPUs come and go as a container's do.
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <bitset>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "cpu/ops/own_cpus.h"

namespace {

using namespace fastrnn;
using Cpus = std::bitset<CPU_SETSIZE>;

#define EXPECT(condition) \
  if (!(condition)) std::printf("line %d: %s\n", __LINE__, #condition), std::exit(1)

// ---- a system, as Linux is since 6.2 ------------------------------------------------------------

Cpus container;                         // the CPUs that the process's control group has
std::function<bool(int)> refuses;       // whether the system does, the how many-th binding
std::function<void(int)> between;       // what happens after it
std::atomic<int> asked{0};              // how many times a thread was bound
thread_local Cpus wish = Cpus().set();  // what a thread was bound to
thread_local int on = 0;                // where it runs

Cpus cpus(std::initializer_list<int> list) {
  Cpus set;
  for (const int cpu : list) set.set(cpu);
  return set;
}

// Where a thread may run; a wish that the container cannot fulfil waits.
Cpus may() { return (wish & container).any() ? wish & container : container; }

}  // namespace

extern "C" int sched_getcpu() noexcept { return on; }

extern "C" int sched_getaffinity(pid_t, size_t bytes, cpu_set_t* set) noexcept {
  EXPECT(bytes == sizeof(*set));
  CPU_ZERO(set);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (may()[cpu]) CPU_SET(cpu, set);
  }
  return 0;
}

extern "C" int sched_setaffinity(pid_t, size_t bytes, const cpu_set_t* set) noexcept {
  EXPECT(bytes == sizeof(*set));
  Cpus to;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) to[cpu] = CPU_ISSET(cpu, set);
  const int times = ++asked;
  if ((refuses && refuses(times)) || (to & container).none()) return errno = EINVAL, -1;
  wish = to;
  while (!may()[on]) on = (on + 1) % CPU_SETSIZE;
  if (between) between(times);
  return 0;
}

namespace {

// One thread of a call beside its caller, which is on CPU 0: where it ends up, and what it may use then and after
// the container has changed.
struct Helper {
  Cpus bound = Cpus().set();
  int begins = 0;
  int ended = -1;
  Cpus left = {}, later = {};
  int too_few = 0;  // CPUs, as the call says
};

void call(Helper& helper, Cpus at_first, Cpus afterwards, int64_t workers = 2) {
  container = at_first;
  asked = 0;
  on = 0;
  int64_t done = 0;
  OwnCpus of(
      workers, [](int64_t begin, int64_t end, void* sum) { *static_cast<int64_t*>(sum) += end - begin; }, &done);
  std::thread([&] {
    wish = helper.bound;
    on = helper.begins;
    OwnCpus::run(1, workers, &of);
    helper.ended = on;
    helper.left = may();
    container = afterwards;
    helper.later = may();
  }).join();
  OwnCpus::run(0, 1, &of);
  EXPECT(done == workers);
  helper.too_few = of.too_few_cpus();
  refuses = nullptr;
  between = nullptr;
}

void moves_and_is_as_before() {
  const Cpus two = cpus({0, 1}), four = cpus({0, 1, 2, 3});
  for (const Cpus& to : {four, cpus({1, 2, 3}), cpus({2, 3}), two, cpus({0})}) {
    Helper free;
    call(free, two, to);
    EXPECT(free.ended == 1 && free.left == two && free.too_few == 0);
    EXPECT(free.later == to);  // what a container is given later is its threads', whoever moved
  }
  Helper bound{.bound = cpus({0, 1, 9})};
  call(bound, four, cpus({0, 1, 2, 3, 4, 5}));
  EXPECT(bound.ended == 1 && bound.left == two);
  EXPECT(bound.later == two);  // what its owner bound it to, it keeps
}

void stays() {
  Helper apart{.begins = 1};
  call(apart, cpus({0, 1}), cpus({0, 1}));
  EXPECT(apart.ended == 1 && asked == 0 && apart.too_few == 0);
  Helper pinned{.bound = cpus({0})};
  call(pinned, cpus({0, 1}), cpus({0, 1}));
  EXPECT(pinned.ended == 0 && asked == 0 && pinned.too_few == 1);
  Helper crowded;
  call(crowded, cpus({0, 1}), cpus({0, 1}), 3);
  EXPECT(crowded.ended == 0 && asked == 0 && crowded.too_few == 2);
  Helper refused;
  refuses = [](int) { return true; };
  call(refused, cpus({0, 1}), cpus({0, 1, 2}));
  EXPECT(refused.ended == 0 && asked == 1 && refused.later == cpus({0, 1, 2}));
}

// All that it may use goes away while it moves: it is not bound for ever to where it was sent.
void the_container_changes_meanwhile() {
  Helper helper;
  between = [](int times) {
    if (times == 1) container = cpus({4, 5});
  };
  call(helper, cpus({0, 1}), cpus({0, 1, 4, 5}));
  EXPECT(helper.left == cpus({4, 5}));
  EXPECT(helper.later == cpus({0, 1, 4, 5}));
}

// Not while another call runs; but in a child that has not the thread which made it.
void other_calls() {
  const Cpus two = cpus({0, 1});
  Helper helper;
  {
    OwnCpus other(2, [](int64_t, int64_t, void*) {}, nullptr);
    call(helper, two, two);
    EXPECT(helper.ended == 0 && asked == 0);
    const pid_t child = fork();
    if (child == 0) {
      call(helper, two, two);
      std::_Exit(helper.ended == 1 ? 0 : 1);
    }
    int status = -1;
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    call(helper, two, two);
    EXPECT(helper.ended == 0 && asked == 0);  // here it still runs
  }
  call(helper, two, two);
  EXPECT(helper.ended == 1);
}

// Callers that come and go, with helpers of their own, all at once: everyone's work is done once.
void at_once(int count) {
  container = cpus({0, 1, 2, 3, 4, 5});
  std::vector<std::thread> callers;
  for (int i = 0; i < count; ++i) {
    callers.emplace_back([] {
      for (int n = 0; n < 200; ++n) {
        int64_t done[4] = {};
        OwnCpus of(
            4,
            [](int64_t begin, int64_t end, void* sums) {
              for (int64_t at = begin; at < end; ++at) ++static_cast<int64_t*>(sums)[at];
            },
            done);
        std::vector<std::thread> helpers;
        for (int64_t at = 1; at < 4; ++at) helpers.emplace_back(OwnCpus::run, at, at + 1, &of);
        OwnCpus::run(0, 1, &of);
        for (std::thread& helper : helpers) helper.join();
        for (const int64_t times : done) EXPECT(times == 1);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

}  // namespace

int main() {
  moves_and_is_as_before();
  stays();
  the_container_changes_meanwhile();
  other_calls();
  at_once(1);
  at_once(6);
  std::puts("fine");
}
