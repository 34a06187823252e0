// Every operator's schema. The devices register their implementations of them in cpu/ops/ and cuda/ops/; autograd
// is in fastrnn/_ops/autograd.py and differentiable.py, fake (meta) versions in fastrnn/_ops/fakes.py.
#include <torch/csrc/stable/library.h>

#include <string>

// The emulator of tests/emu compiles this for a namespace of its own.
#ifndef FASTRNN_NAMESPACE
#define FASTRNN_NAMESPACE fastrnn
#endif

STABLE_TORCH_LIBRARY(FASTRNN_NAMESPACE, m) {
  // Every operator that takes a list is defined twice, first as its overload .script. The stable ABI moves the
  // elements out of a list that it converts. The lists of a call from Python or C++ are the call's own; those of
  // TorchScript are the program's, which may pass one again (in a loop, or as a constant of a frozen module) and
  // would find it empty. TorchScript knows no names of overloads and takes the first that fits, also for programs
  // saved before there were two: and fastrnn/_ops/script.py makes of that one a call with a list of its own.
  const auto define = [&](const std::string& schema) {
    const size_t name_ends = schema.find('(');
    m.def((schema.substr(0, name_ends) + ".script" + schema.substr(name_ends)).c_str());
    m.def(schema.c_str());
  };

  // One recurrent layer over a whole sequence, one or two directions, input projection included.
  //
  // x            (T, B, I), any strides; with batch_sizes packed rows (N, I), N = sum(batch_sizes)
  // h0, c0       (D, B, Hout), (D, B, H); c0 for an LSTM alone
  // weights      for each direction: w_ih (G*H, I), w_hh (G*H, Hout), with bias b_ih and b_hh (G*H),
  //              for an LSTM with projection w_hr (P, H)
  //
  // The rows of a batch may differ. Packed or padded, nothing is sorted or copied:
  // batch_sizes  (T,) int64 on the CPU, positive and non-increasing, as in a PackedSequence; x is packed then
  // lengths      (B,) int64 on the CPU, 0 to T, of a padded batch's rows: what lies beyond is neither read nor
  //              written (y, cells and grad_x are zero there); a row of length 0 ends in the state in which it began
  // reset        (T, B) bool or uint8 on x's device, of a padded batch: steps that begin a new sequence, from
  //              a state of zeros. Neither direction's state passes from before such a step to it or back; the
  //              forward direction drops h0 and c0 where step 0 is one
  //
  // cell         "lstm", "gru", "rnn_tanh", "rnn_relu", and behind the name the options of a variant, each after a +
  //              (cells/variant.h):
  //                peephole        LSTM: p (3*H,) for i, f, o; i and f see c_{t-1}, o the candidate of c_t
  //                coupled         LSTM: f = 1 - i; what f has of the weights is unused
  //                norm=eps        layer norm of both products over all gates: gains norm_ih, norm_hh (G*H,); the h
  //                                of an LSTM sees a normalised c with norm_c, norm_c_bias (H,). Biases come behind
  //                reset_before    GRU: n = tanh(W_in x + b_in + W_hn (r * h) + b_hn); not with norm
  //                heads=n         w_hh (G*H, H/n), of which unit j multiplies its head's part of h; no projection
  //                zoneout_h, zoneout_c   k h_{t-1} + (1 - k) h, with k = keep_h like y; c of an LSTM with keep_c,
  //                                (T, B, D*H) or (N, D*H); rows and steps may be broadcast
  //                recurrent_mask  h_{t-1} times a mask (D, B, Hout) before w_hh
  //              A direction's weights then end with what its options have, in this order; behind all directions
  //              stand keep_h, keep_c and the mask, constants whose gradients come back (0,)
  // mode         what backward will find: 0 nothing, 1 gates, 2 what recomputes them; plus, for the CUDA
  //              kernels (the CPU has neither), 16 times the tier: 0 what the device has proven, else
  //              stepwise; 1 one CTA, 2 grid, 3 stepwise, 4 cluster, 5 to 7 clusters of 4, 8 and 16, an error where
  //              that one cannot; plus 128 where the products of a float32 layer may round their factors to
  //              TensorFloat-32; plus 256 for eight more: 8 stepwise as a CUDA graph, 9 to 13 one CTA, clusters of
  //              4, 8 and 16 and the grid, forward, with x's product beside the loop
  //
  // y            (T, B, D*Hout) or (N, D*Hout); hn (D, B, Hout); cn (D, B, H), LSTM
  // gates        mode 1: (D, N, 4*H), the activated i, f, g, o (LSTM) or r, z, n and the recurrent
  //              part of n (GRU); otherwise and for an RNN (0,). A variant saves as many or more, for its own
  //              backward pass alone; without them that runs forward again
  // cells        LSTM, mode 1 or 2: (D, N, H), c of every step, float32 for half types
  define(
      "rnn_forward(Tensor x, Tensor h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, "
      "Tensor? reset, str cell, bool bias, int mode) "
      "-> (Tensor y, Tensor hn, Tensor cn, Tensor gates, Tensor cells)");

  // grad_cells: of every step's c, like cells; only an LSTM's is looked at.
  // mode: sum of 1 (grad_x), 2 (grad_h0), 4 (grad_c0), 8 (grad_weights), the rest comes back empty; plus a
  // tier and TensorFloat-32 as in forward. One number, as every argument costs a call its time.
  // Nothing that is passed in is written to, so a graph may be walked twice.
  define(
      "rnn_backward(Tensor? grad_y, Tensor? grad_hn, Tensor? grad_cn, Tensor? grad_cells, Tensor x, Tensor h0, "
      "Tensor? c0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, Tensor y, Tensor gates, "
      "Tensor cells, str cell, bool bias, int mode) "
      "-> (Tensor grad_x, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_weights)");

  // rnn_backward for compilers that take no list among an operator's results: the gradients of the weights one
  // by one, (0,) where there is no such weight. Eager code has no use for the empty ones, which cost it their
  // making.
  define(
      "rnn_backward_unlisted(Tensor? grad_y, Tensor? grad_hn, Tensor? grad_cn, Tensor? grad_cells, Tensor x, Tensor "
      "h0, "
      "Tensor? c0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, Tensor y, Tensor gates, "
      "Tensor cells, str cell, bool bias, int mode) "
      "-> (Tensor grad_x, Tensor grad_h0, Tensor grad_c0, Tensor w0, Tensor w1, Tensor w2, Tensor w3, Tensor w4, "
      "Tensor w5, Tensor w6, Tensor w7, Tensor w8, Tensor w9)");

  // The same for a variant, which may have more of them.
  define(
      "rnn_backward_unlisted_variant(Tensor? grad_y, Tensor? grad_hn, Tensor? grad_cn, Tensor? grad_cells, Tensor x, "
      "Tensor h0, "
      "Tensor? c0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, Tensor? reset, Tensor y, Tensor gates, "
      "Tensor cells, str cell, bool bias, int mode) "
      "-> (Tensor grad_x, Tensor grad_h0, Tensor grad_c0, Tensor w0, Tensor w1, Tensor w2, Tensor w3, Tensor w4, "
      "Tensor w5, Tensor w6, Tensor w7, Tensor w8, Tensor w9, Tensor w10, Tensor w11, Tensor w12, Tensor w13, "
      "Tensor w14, Tensor w15, Tensor w16, Tensor w17, Tensor w18, Tensor w19, Tensor w20, Tensor w21, Tensor w22)");

  // One recurrent layer for the programs that tracers write: arguments and results as of rnn_forward without the
  // gates, an LSTM's cells if keep_cells, else (0,); and a derivative that the dispatcher knows
  // (fastrnn/_ops/differentiable.py registers it). So it is decided when the program runs whether something is
  // kept for a backward pass: what mode says, or without gradients nothing. Where a kind of device has no tiers
  // or TensorFloat-32, the mode's numbers for them are ignored.
  define(
      "rnn_layer(Tensor x, Tensor h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, "
      "Tensor? reset, str cell, bool bias, bool keep_cells, int mode) "
      "-> (Tensor y, Tensor hn, Tensor cn, Tensor cells)");

  // The recurrence of one SRU layer over a whole sequence, one or two directions (cells/sru.h); the
  // projections are products outside of it. O = D*H features, the direction outermost.
  //
  // u            (L, B, K, O), any strides, K = 3 (x~, f, r) or 4 (and the skip term); with batch_sizes
  //              packed rows (N, K, O)
  // x            (L, B, O) or (N, O), the highway's input times scale; K = 3 only, none: no skip term
  // weight_c, bias   (2, O): forget row, reset row
  // c0           (B, O)
  // v            (L, B, 2, O) or (N, 2, O), added to weight_c
  // mask_pad     (L, B) bool, true where c is carried and h is 0; not with batch_sizes
  // drop_mask    (B, O), on the highway's difference
  // batch_sizes  (L,) int64 on the CPU, positive and non-increasing, as in a PackedSequence
  // reset        (L, B) bool or uint8, steps that begin a new sequence, as of rnn_forward; a pad begins none;
  //              not with batch_sizes
  // save         whether backward will follow
  //
  // h            (L, B, O) or (N, O); c (B, O), the state after the last step of each direction
  // cells        (N, O), c of every step, of a pad what it carries, float32 for half types; without save (0,)
  m.def(
      "sru_forward(Tensor u, Tensor? x, Tensor weight_c, Tensor bias, Tensor c0, Tensor? v, Tensor? mask_pad, "
      "Tensor? drop_mask, Tensor? batch_sizes, Tensor? reset, bool use_tanh, float scale, bool bidirectional, "
      "bool save) -> (Tensor h, Tensor c, Tensor cells)");

  // The same for the programs that tracers write: see rnn_layer. Without keep_cells cells is (0,).
  m.def(
      "sru_scan(Tensor u, Tensor? x, Tensor weight_c, Tensor bias, Tensor c0, Tensor? v, Tensor? mask_pad, "
      "Tensor? drop_mask, Tensor? batch_sizes, Tensor? reset, bool use_tanh, float scale, bool bidirectional, "
      "bool keep_cells) -> (Tensor h, Tensor c, Tensor cells)");

  // needs: sum of 1 (grad_u), 2 (grad_x), 4 (grad_weight_c and grad_bias), 8 (grad_c0), 16 (grad_v); the
  // rest comes back empty, as does the gradient of what is none. drop_mask, mask_pad and reset are
  // constants. grad_cells: of every step's c, like cells.
  // Nothing that is passed in is written to.
  m.def(
      "sru_backward(Tensor? grad_h, Tensor? grad_c, Tensor? grad_cells, Tensor u, Tensor? x, Tensor weight_c, "
      "Tensor bias, Tensor c0, Tensor? v, Tensor? mask_pad, Tensor? drop_mask, Tensor? batch_sizes, Tensor? reset, "
      "Tensor cells, bool use_tanh, float scale, bool bidirectional, int needs) "
      "-> (Tensor grad_u, Tensor grad_x, Tensor grad_weight_c, Tensor grad_bias, Tensor grad_c0, Tensor grad_v)");

  // Weights that were packed once: a step, a few or a whole sequence at a time. On the CPU; nothing here has
  // gradients.
  //
  // rnn_pack     one layer's weights as the instruction set in use reads them: bytes for rnn_stream alone
  // rnn_stream   a stack of layers over x (T, B, I), or a step (B, I); h0 (L, B, Hout), c0 (L, B, H) for an
  //              LSTM alone; packed: of each layer by rnn_pack. y (T, B, Hout), or (B, Hout), of the last
  //              layer; hn, cn like h0 and c0
  // rnn_pack_quantized   one direction of a layer with weights of bfloat16, or of int8 (-127 to 127) with a float32
  //              scale a row, (G*H,) and of w_hr (P,); biases are float32. The bytes are the same on every machine
  // rnn_quantized   a stack of such layers, float32, in one or two directions: x (T, B, I), or with batch_sizes
  //              packed rows (N, I), or lengths, as of rnn_forward; packed, h0 and c0 of each layer and direction,
  //              (L*D, B, .); y (T, B, D*Hout) or (N, D*Hout)
  // cpu_stream_entry  where fastrnn._C finds the function behind these two (params/stream.h), an address
  // cpu_layer_entry   the same of rnn_forward where it saves nothing (params/layer_call.h)
  // cpu_int8_dot      whether calls that start afterwards may use an instruction for int8 products, for tests;
  //              returns whether there is one
  define("rnn_pack(Tensor[] weights, str cell, bool bias) -> Tensor");
  define("rnn_stream(Tensor x, Tensor h0, Tensor? c0, Tensor[] packed) -> (Tensor y, Tensor hn, Tensor cn)");
  m.def(
      "rnn_pack_quantized(Tensor w_ih, Tensor w_hh, Tensor? w_hr, Tensor? scale_ih, Tensor? scale_hh, "
      "Tensor? scale_hr, Tensor? b_ih, Tensor? b_hh, str cell) -> Tensor");
  define(
      "rnn_quantized(Tensor x, Tensor h0, Tensor? c0, Tensor[] packed, Tensor? batch_sizes, "
      "Tensor? lengths, bool bidirectional) -> (Tensor y, Tensor hn, Tensor cn)");
  m.def("cpu_stream_entry() -> int");
  m.def("cpu_layer_entry() -> int");
  m.def("cpu_int8_dot(bool use) -> bool");

  // One step of an SRU layer with the product that gives u, by kernels for a few rows; no gradients. x (B, I);
  // weight (O*K, I), the K rows of a feature next to each other; skip (B, O) is sru_forward's x; weight_c,
  // bias (2*O,), the rest as there. h (B, O), c (B, O).
  m.def(
      "sru_step(Tensor x, Tensor weight, Tensor? skip, Tensor weight_c, Tensor bias, Tensor c0, bool use_tanh, "
      "float scale) -> (Tensor h, Tensor c)");

  // Recurrences of one state that is their output (cells/elementwise.h), one direction over a whole sequence.
  //
  // cell         "linear" h = a h + b, of a in x and of b, (T, B, H) each; "mingru" and "mingru_log", x (T, B, 2*H),
  //              z and the candidate; "minlstm" and "minlstm_log", x (T, B, 3*H), f, i and the candidate;
  //              "indrnn_tanh" and "indrnn_relu", x (T, B, H), weight (H,). Any strides
  // h0           (B, H), zeros by default
  // lengths      (B,) int64 on the CPU, 0 to T: what lies beyond is neither read nor does the state change there,
  //              and y is zero
  // cut          (T, B) bool or uint8: steps that begin from a state of 0, in the direction's own order
  // reverse      from the last step to the first
  //
  // y            (T, B, H); last (B, H), the state after the last step
  m.def(
      "elementwise_forward(str cell, Tensor x, Tensor? b, Tensor? weight, Tensor? h0, Tensor? lengths, Tensor? cut, "
      "bool reverse) -> (Tensor y, Tensor last)");
  // needs: sum of 1 (grad_x), 2 (grad_b), 4 (grad_weight), 8 (grad_h0), the rest comes back (0,).
  m.def(
      "elementwise_backward(str cell, Tensor? grad_y, Tensor? grad_last, Tensor x, Tensor? b, Tensor? weight, "
      "Tensor? h0, Tensor? lengths, Tensor? cut, Tensor y, bool reverse, int needs) "
      "-> (Tensor grad_x, Tensor grad_b, Tensor grad_weight, Tensor grad_h0)");

  // One direction of an sLSTM (cells/slstm.h). gx (T, B, 4*H), the input's part of i, f, z, o, any strides; weight_hh
  // (4*H, H/heads), row g*H + j of unit j's head; states (B, H), zeros by default; lengths, cut and reverse as above.
  //
  // y            (T, B, H); h, c, n, m (B, H) after the last step
  // pre, saved   with `save`, for backward: (T, B, 4*H), and c, n, m of every step, (T, B, 3*H), in the compute type;
  //              otherwise (0,)
  m.def(
      "slstm_forward(Tensor gx, Tensor weight_hh, Tensor? h0, Tensor? c0, Tensor? n0, Tensor? m0, Tensor? lengths, "
      "Tensor? cut, bool reverse, bool save) "
      "-> (Tensor y, Tensor h, Tensor c, Tensor n, Tensor m, Tensor pre, Tensor saved)");
  // Of gx its kind and shape alone are looked at. The gradient of weight_hh is a product of grad_gx and y.
  m.def(
      "slstm_backward(Tensor? grad_y, Tensor? grad_h, Tensor? grad_c, Tensor? grad_n, Tensor? grad_m, Tensor gx, "
      "Tensor weight_hh, Tensor? h0, Tensor? c0, Tensor? n0, Tensor? m0, Tensor? lengths, Tensor? cut, Tensor pre, "
      "Tensor saved, bool reverse) "
      "-> (Tensor grad_gx, Tensor grad_h0, Tensor grad_c0, Tensor grad_n0, Tensor grad_m0)");

  // The CPU instruction set in use, those this machine can run (comma-separated), and a switch for
  // tests; it applies to calls that start afterwards.
  m.def("cpu_isa() -> str");
  m.def("cpu_isas() -> str");
  m.def("cpu_set_isa(str name) -> ()");
  // What the plan of a layer looks at: of the kernels in use lanes of a register in the compute dtype and rows of a
  // full tile; of the machine its caches, and the time of a meeting of two threads and of a parallel region.
  m.def(
      "cpu_machine(bool float64) -> (int lanes, int tile_rows, int l2_bytes, int l3_bytes, int meeting_ns, "
      "int region_ns)");
  // Plans for another machine, for tests.
  m.def("cpu_set_machine(int l2_bytes, int l3_bytes, int meeting_ns, int region_ns) -> ()");

  // How this thread's last call of rnn_forward or rnn_backward on the CPU was divided: a plan's fields.
  m.def(
      "cpu_last_plan() -> (bool direct, int direction_groups, int batch_groups, int unit_groups, int forward_chunk, "
      "int backward_chunk)");

  // How many threads a call may use now, and a limit to that; with `known` the limit is the number of CPUs, and
  // the system is not asked for it.
  m.def("cpu_threads() -> int");
  m.def("cpu_limit_threads(int limit, bool known) -> ()");
  // Bytes of scratch memory that were kept for later calls and no longer are.
  m.def("cpu_release_scratch() -> int");

  // What a GPU may run unasked, and what it did; of the CUDA library alone. Lines of text, with tabs between words.
  //
  // cuda_trust        takes the place of what the device has proven: see Trust::replace
  // cuda_quarantine   a tier that must not run unasked, and why; "" lets go of all
  // cuda_quarantined  those, a line each
  // cuda_ran          passes launched since the last cuda_clear_ran: tier, pass, number; clusters also by size
  // cuda_status       what the device's kernels have left word of, once, or ""; no synchronisation
  // cuda_has_image    whether this build has code that the device runs, by the runtime's own word
  m.def("cuda_trust(int device, str lines) -> ()");
  m.def("cuda_quarantine(int device, str tier, str why) -> ()");
  m.def("cuda_quarantined(int device) -> str");
  m.def("cuda_ran() -> str");
  m.def("cuda_clear_ran() -> ()");
  m.def("cuda_status(int device) -> str");
  // cuda_release_scratch  bytes of GPU memory that were kept for later calls and no longer are
  m.def("cuda_has_image(int device) -> bool");
  m.def("cuda_release_scratch() -> int");

  // What this machine could do at best, for "% of the limit": float32 multiply-adds in registers
  // (flop/s) and reading a buffer of that many bytes (bytes/s), each on one thread.
  m.def("cpu_fma_peak() -> float");
  m.def("cpu_read_bandwidth(int bytes) -> float");
  // What a layer needs beside them: the functions of a cell, in float32 (units/s, one thread), and a meeting of so
  // many threads, at which a step waits for all of them (seconds).
  m.def("cpu_cell_rate(str cell) -> float");
  m.def("cpu_meeting(int threads) -> float");
}
