// The CPU's kernels in a program of their own, without torch and without Python: for tools that want no other code in
// the process (ThreadSanitizer), and for processors that this machine only emulates.
//
// Reads commands from standard input and answers on standard output, all in the machine's own bytes:
//     command   int64 count, that many words; int64 count of inputs, each as int64 bytes (-1: none) and those bytes;
//               int64 count of outputs, each as int64 bytes (-1: none)
//     answer    int64 0 and the outputs' bytes, or int64 length of a text that says what went wrong, and the text
// kernels.py is the other end. Outputs and scratch memory begin as NaN, and behind the scratch lies what no kernel
// may write to. With EMULATED_TILES and the argument "tiles" the kernels for AMX are there too, their instructions
// emulated (tiles.h); how many of them ran is told on standard error in the end.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/isa/choose.h"
#include "cpu/ops/own_cpus.h"
#include "params/cell_text.h"
#include "tiles.h"

namespace {

using namespace fastrnn;

// As many threads as workers. A worker a thread, so that each meets the others as on a machine with cores enough.
const Parallel kThreads{[](int64_t workers, void (*body)(int64_t, int64_t, void*), void* context) {
  OwnCpus call(workers, body, context);
  std::vector<std::thread> threads;
  for (int64_t i = 1; i < workers; ++i) threads.emplace_back(OwnCpus::run, i, i + 1, &call);
  OwnCpus::run(0, 1, &call);
  for (std::thread& thread : threads) thread.join();
}};

// ---- scratch memory -----------------------------------------------------------------------------

class Scratch {
 public:
  explicit Scratch(size_t bytes) : bytes_(bytes), size_((bytes + 63) / 64 * 64 + kGuard) {
    data_ = static_cast<char*>(std::aligned_alloc(64, size_));
    std::memset(data_, kFill, size_);
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  char* data() const { return data_; }
  void check() const {
    for (size_t i = bytes_; i < size_; ++i) {
      if (data_[i] != kFill)
        throw std::runtime_error("written " + std::to_string(i - bytes_) + " bytes behind scratch");
    }
  }

 private:
  static constexpr size_t kGuard = 4096;
  static constexpr char kFill = static_cast<char>(0xff);
  size_t bytes_, size_;
  char* data_;
};

template <class Params, class Plan>
void run(const Params& params, const Plan& plan, size_t (*workspace)(const Params&, const Plan&),
         void (*kernel)(const Params&, const Plan&, char*, const Parallel&)) {
  const Scratch scratch(workspace(params, plan));
  kernel(params, plan, scratch.data(), kThreads);
  scratch.check();
}

// ---- commands -----------------------------------------------------------------------------------

struct Command {
  std::vector<int64_t> words;
  std::vector<std::vector<char>> inputs, outputs;
  std::vector<bool> has_input, has_output;

  // One after the other, each null where there is none.
  size_t word = 0, input = 0, output = 0;
  int64_t next() { return words.at(word++); }
  int next_int() { return static_cast<int>(next()); }
  template <class T = void>
  const T* in() {
    const size_t i = input++;
    return has_input.at(i) ? reinterpret_cast<const T*>(inputs[i].data()) : nullptr;
  }
  void* out() {
    const size_t i = output++;
    return has_output.at(i) ? outputs[i].data() : nullptr;
  }
};

TensorRows rows_of(const void* data, int64_t B, int64_t width) {
  TensorRows rows;
  rows.data = const_cast<void*>(data);
  rows.step_stride = B * width;
  rows.row_stride = width;
  return rows;
}

std::vector<const KernelTable*> tables;

LayerShape read_layer(Command& c) {
  LayerShape s;
  s.cell = static_cast<CellKind>(c.next());
  s.dtype = static_cast<Dtype>(c.next());
  s.T = c.next(), s.B = c.next(), s.I = c.next(), s.H = c.next(), s.P = c.next(), s.D = c.next_int();
  s.bias = c.next();
  s.padded_steps = c.next();
  s.batch_sizes = c.in<int64_t>(), s.row_offsets = c.in<int64_t>(), s.order = c.in<int64_t>();
  s.resets = c.in<uint8_t>();
  if (const char* options = c.in<char>()) {
    const std::string wrong = read_cell_options(options, 0, s.cell, s.variant);
    if (!wrong.empty()) throw std::runtime_error(wrong);
  }
  return s;
}
// The fields of weights or of their gradients.
template <class Weights>
auto fields_of(Weights& w) {
  return std::array{&w.w_ih,     &w.w_hh,    &w.b_ih,    &w.b_hh,   &w.w_hr,
                    &w.peephole, &w.norm_ih, &w.norm_hh, &w.norm_c, &w.norm_c_bias};
}
// The weights of every direction, then a variant's masks.
template <class Params>
void read_weights(Command& c, Params& p) {
  const LayerShape& s = p.shape;
  for (int d = 0; d < s.D; ++d) {
    for (const void** to : fields_of(p.weights[d])) *to = c.in();
  }
  p.masks.keep_h = rows_of(c.in(), s.B, s.D * s.out_size());
  p.masks.keep_c = rows_of(c.in(), s.B, s.D * s.H);
  p.masks.recurrent = c.in();
}
// The library's own plan for a number of threads, or groups and chunks that it would not choose.
CpuPlan read_plan(Command& c, const LayerShape& s, const KernelTable& kernels) {
  CpuMachine machine = machine_of(kernels, s.dtype, c.next_int());
  machine.meeting_ns = machine.region_ns = 0;  // threads for little work too
  CpuPlan plan = plan_cpu(s, machine);
  const int batch_groups = c.next_int(), unit_groups = c.next_int();
  if (batch_groups) plan.batch_groups = batch_groups;
  if (unit_groups) plan.unit_groups = unit_groups;
  if (const int64_t chunk = c.next()) {
    plan.backward_chunk = chunk;
    if (!plan.direct) plan.forward_chunk = chunk;  // a direct pass has chunks of one step
  }
  return plan;
}

void forward(Command& c, const KernelTable& kernels) {
  ForwardParams p;
  p.shape = read_layer(c);
  const CpuPlan plan = read_plan(c, p.shape, kernels);
  p.save = static_cast<Save>(c.next());
  p.x = rows_of(c.in(), p.shape.B, p.shape.I);
  p.h0 = c.in(), p.c0 = c.in();
  read_weights(c, p);
  p.y = c.out(), p.hn = c.out(), p.cn = c.out(), p.gates = c.out(), p.cells = c.out();
  run(p, plan, kernels.forward_workspace, kernels.forward);
}

void backward(Command& c, const KernelTable& kernels) {
  BackwardParams p;
  const LayerShape& s = p.shape = read_layer(c);
  const CpuPlan plan = read_plan(c, s, kernels);
  p.x = rows_of(c.in(), s.B, s.I);
  p.h0 = c.in(), p.c0 = c.in();
  read_weights(c, p);
  p.y = c.in(), p.gates = c.in(), p.cells = c.in();
  p.grad_y = rows_of(c.in(), s.B, s.D * s.out_size());
  p.grad_hn = c.in(), p.grad_cn = c.in(), p.grad_cells = c.in();
  p.grad_x[0] = c.out(), p.grad_x[1] = c.out(), p.grad_h0 = c.out(), p.grad_c0 = c.out();
  p.need_weights = true;
  for (int d = 0; d < s.D; ++d) {
    for (void** to : fields_of(p.grad_weights[d])) *to = c.out();
  }
  run(p, plan, kernels.backward_workspace, kernels.backward);
}

ScanInputs read_scan(Command& c, ScanPlan& plan) {
  ScanInputs in;
  ScanShape& s = in.shape;
  s.dtype = static_cast<Dtype>(c.next());
  s.T = c.next(), s.B = c.next(), s.O = c.next(), s.K = c.next_int(), s.D = c.next_int(), s.use_tanh = c.next();
  const int64_t scale = c.next();
  std::memcpy(&in.scale, &scale, sizeof scale);
  in.flags_stride = c.next();
  plan = plan_scan(s, 0, c.next_int());
  if (const int64_t groups = c.next()) {
    plan.batch_groups = static_cast<int>(groups);
    plan.unit_groups = c.next_int();
  } else {
    c.next();
  }
  plan.stream = c.next();
  s.batch_sizes = c.in<int64_t>(), s.row_offsets = c.in<int64_t>();
  const auto gates = [&](int64_t count) {
    GateRows rows;
    rows.data = const_cast<void*>(c.in());
    rows.step_stride = s.B * count * s.O, rows.row_stride = count * s.O, rows.gate_stride = s.O;
    return rows;
  };
  in.u = gates(s.K);
  in.x = rows_of(c.in(), s.B, s.O);
  in.weight_c = c.in(), in.bias = c.in(), in.c0 = c.in();
  in.v = gates(2);
  in.drop_mask = c.in();
  in.flags = c.in<uint8_t>();
  return in;
}

void scan_forward(Command& c, const KernelTable& kernels) {
  ScanForwardParams p;
  ScanPlan plan;
  p.in = read_scan(c, plan);
  p.h = c.out(), p.c = c.out(), p.cells = c.out();
  run(p, plan, kernels.scan->forward_workspace, kernels.scan->forward);
}

void scan_backward(Command& c, const KernelTable& kernels) {
  ScanBackwardParams p;
  ScanPlan plan;
  p.in = read_scan(c, plan);
  p.cells = c.in();
  p.grad_h = rows_of(c.in(), p.in.shape.B, p.in.shape.O);
  p.grad_c = c.in(), p.grad_cells = c.in();
  p.grad_u = c.out(), p.grad_x = c.out(), p.grad_weight_c = c.out(), p.grad_bias = c.out(), p.grad_c0 = c.out();
  p.grad_v = c.out();
  run(p, plan, kernels.scan->backward_workspace, kernels.scan->backward);
}

// ---- the pipe -----------------------------------------------------------------------------------

void read_bytes(void* to, size_t bytes) {
  if (bytes && std::fread(to, 1, bytes, stdin) != bytes) throw std::runtime_error("standard input ends early");
}
int64_t read_word() {
  int64_t word;
  read_bytes(&word, sizeof word);
  return word;
}

Command read_command(int64_t count) {
  Command c;
  c.words.resize(count);
  read_bytes(c.words.data(), count * sizeof(int64_t));
  for (int64_t i = read_word(); i > 0; --i) {
    const int64_t bytes = read_word();
    c.has_input.push_back(bytes >= 0);
    read_bytes(c.inputs.emplace_back(std::max<int64_t>(bytes, 0)).data(), std::max<int64_t>(bytes, 0));
  }
  for (int64_t i = read_word(); i > 0; --i) {
    const int64_t bytes = read_word();
    c.has_output.push_back(bytes >= 0);
    c.outputs.emplace_back(std::max<int64_t>(bytes, 0), static_cast<char>(0xff));
  }
  return c;
}

void write_bytes(const void* from, size_t bytes) { std::fwrite(from, 1, bytes, stdout); }

void answer(Command c) {
  void (*const commands[])(Command&, const KernelTable&) = {forward, backward, scan_forward, scan_backward};
  std::string wrong;
  try {
    const int64_t what = c.next();
    const KernelTable& kernels = *tables.at(c.next_int());
    commands[what](c, kernels);
    if (c.word != c.words.size() || c.input != c.inputs.size() || c.output != c.outputs.size()) {
      throw std::runtime_error("the command says more than was asked");
    }
  } catch (const std::exception& error) {
    wrong = *error.what() ? error.what() : "an error without a text";
  }
  const int64_t length = static_cast<int64_t>(wrong.size());
  write_bytes(&length, sizeof length);
  write_bytes(wrong.data(), wrong.size());
  if (wrong.empty()) {
    for (const std::vector<char>& output : c.outputs) write_bytes(output.data(), output.size());
  }
}

}  // namespace

// Begins with the names of the instruction sets that run here, one a line, and an empty line.
int main(int argc, char** argv) {
  tables = runnable_kernels();
#ifdef EMULATED_TILES
  const bool emulated = argc > 1 && std::strcmp(argv[1], "tiles") == 0;
  if (emulated && kAvx512Bf16Kernels.runs_here()) {
    tiles::emulate();
    tables.push_back(&kAmxKernels);
  }
#endif
  for (const KernelTable* table : tables) std::printf("%s\n", table->name);
  std::printf("\n");
  std::fflush(stdout);
  int64_t count;
  while (std::fread(&count, sizeof count, 1, stdin) == 1) {
    answer(read_command(count));
    std::fflush(stdout);
  }
#ifdef EMULATED_TILES
  if (emulated) std::fprintf(stderr, "emulated %llu\n", static_cast<unsigned long long>(tiles::instructions_run));
#endif
  return 0;
}
