// The Python module fastrnn._C: what was built, the plan of a layer, and calls of streams. It is linked with no
// torch, so that it can be asked anywhere; the operators are in libfastrnn_cpu and libfastrnn_cuda.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "cpu/isa/list.h"
#include "params/cell_text.h"
#include "plan/cost.h"
#include "plan/cpu.h"
#include "plan/cuda.h"
#include "plan/quantized.h"
#include "plan/table.h"
#include "plan/trust.h"
#include "python_layer.h"
#include "python_stream.h"

#ifndef FASTRNN_VERSION
#define FASTRNN_VERSION "unknown"
#endif
#ifndef FASTRNN_CUDA_ARCHS
#define FASTRNN_CUDA_ARCHS ""
#endif
#ifndef FASTRNN_CUDA_COMPILER
#define FASTRNN_CUDA_COMPILER ""
#endif
#ifndef FASTRNN_TORCH_BUILD
#define FASTRNN_TORCH_BUILD "unknown"
#endif

namespace py = pybind11;
using namespace fastrnn;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = FASTRNN_VERSION;
  info["compiler"] = std::string(
#ifdef __clang__
                         "clang "
#else
                         "gcc "
#endif
                         ) +
                     __VERSION__;
  info["torch"] = FASTRNN_TORCH_BUILD;
  info["cuda_archs"] = FASTRNN_CUDA_ARCHS;
  info["cuda_compiler"] = FASTRNN_CUDA_COMPILER;
  return info;
}

// Field by field, so that a typo is an error and not a default.
template <class E>
E one_of(const std::string& argument, const std::string& value,
         const std::vector<std::pair<const char*, E>>& choices) {
  std::string known;
  for (const auto& [name, choice] : choices) {
    if (value == name) return choice;
    known += (known.empty() ? "'" : ", '") + std::string(name) + "'";
  }
  throw py::value_error(argument + ": expected one of " + known + ", got '" + value + "'");
}

// The tiers of a kind, by name.
template <class Which>
std::vector<std::pair<const char*, Tier>> tiers_that(Which which) {
  std::vector<std::pair<const char*, Tier>> choices;
  for (int i = 0; i < kTiers; ++i) {
    const Tier tier = static_cast<Tier>(i);
    if (which(tier)) choices.push_back({tier_name(tier), tier});
  }
  return choices;
}
bool runs_as_asked(Tier tier) { return family_of(tier) == tier; }

// The lists that C++ and Python both keep, for a test to compare.
py::dict lists() {
  py::dict cells, out;
  for (const CellFacts& cell : kCells) {
    cells[cell.name] = py::dict(py::arg("gates") = cell.gates, py::arg("saved") = cell.saved,
                                py::arg("has_cell") = cell.has_cell, py::arg("split") = cell.split);
  }
  const auto modes = [](auto which) {
    py::dict found;
    for (const auto& [name, tier] : tiers_that(which)) found[name] = mode_of(tier);
    return found;
  };
  py::list isas;
  for (const char* isa : kIsaNames) isas.append(isa);
  out["isas"] = py::tuple(isas);
  out["cells"] = cells;
  out["tiers"] = modes(runs_as_asked);
  out["clusters"] = modes([](Tier tier) { return cluster_of(tier) && !overlaps(tier); });
  out["overlaps"] = modes(overlaps);
  out["tf32"] = kModeTf32;
  out["save"] = py::dict(py::arg("nothing") = static_cast<int>(Save::kNothing),
                         py::arg("gates") = static_cast<int>(Save::kGates),
                         py::arg("recompute") = static_cast<int>(Save::kRecompute));
  out["needs"] = py::dict(py::arg("x") = Needs::kX, py::arg("h0") = Needs::kH0, py::arg("c0") = Needs::kC0,
                          py::arg("weights") = Needs::kWeights);
  out["scan_needs"] =
      py::dict(py::arg("u") = ScanNeeds::kU, py::arg("x") = ScanNeeds::kX, py::arg("weights") = ScanNeeds::kWeights,
               py::arg("c0") = ScanNeeds::kC0, py::arg("v") = ScanNeeds::kV);
  return out;
}

// The plan of one pass on a GPU, as "kernel", "reason" and so on.
py::dict cuda_pass(const CudaPlan& chosen) {
  static const char* const precisions[] = {"float32", "tf32", "bfloat16", "float16"};
  py::dict out;
  out["kernel"] = tier_name(chosen.tier);
  out["possible"] = chosen.possible;
  out["reason"] = chosen.reason;
  if (!chosen.possible) return out;
  out["precision"] = precisions[static_cast<int>(chosen.precision)];
  static const char* const sources[] = {"model", "scaled", "interpolated", "measured"};
  out["step_us"] = chosen.step_us;
  out["source"] = sources[static_cast<int>(chosen.source)];
  out["model_us"] = chosen.model_us;
  if (chosen.tier == Tier::kStepwiseGraph) out["graph_bytes"] = chosen.graph_bytes;
  if (!is_persistent(chosen.tier)) return out;
  const cuda::PersistentGeometry& g = chosen.geometry;
  if (g.pass == cuda::Pass::kForward) {
    out["input_projection"] = chosen.chunks > 1 ? "beside it, in chunks"
                              : chosen.projects ? "in the kernel"
                                                : "before it";
    if (chosen.chunks > 1) out["chunks"] = chosen.chunks;
  }
  out["ctas"] = g.ctas;
  if (g.tier == Tier::kCluster) out["cluster"] = g.ctas_per_replica;
  out["replicas"] = g.replicas;
  out["units_per_cta"] = g.units_per_cta;
  out["row_tiles"] = g.n_tiles;
  out["k_split"] = g.k_split;
  out["threads"] = g.threads;
  out["shared_bytes"] = g.shared_bytes;
  out["workspace_bytes"] = g.workspace_bytes;
  return out;
}

cuda::CudaDevice cuda_device(const py::dict& gpu) {
  cuda::CudaDevice device;
  device.compute_capability = py::cast<int>(gpu["compute_capability"]);
  device.sms = py::cast<int>(gpu["sms"]);
  device.shared_bytes_per_block_optin = py::cast<int64_t>(gpu["shared_bytes_per_block"]);
  device.l2_bytes = py::cast<int64_t>(gpu["l2_bytes"]);
  device.cooperative_launch = py::cast<bool>(gpu["cooperative_launch"]);
  device.max_cluster = cuda::max_cluster_of(device.compute_capability);
  return device;
}

// As benchmarks/plan_table.py makes it: {"measured", "provenance", "gpu", "steps", "batches", "rows"}, a row (tier,
// cell, precision, pass, H, microseconds a batch).
PlanTable table_of(const py::dict& from) {
  PlanTable table;
  table.measured = py::cast<bool>(from["measured"]);
  table.provenance = py::cast<std::string>(from["provenance"]);
  table.device = cuda_device(py::cast<py::dict>(from["gpu"]));
  table.steps = py::cast<int64_t>(from["steps"]);
  table.batches = py::cast<std::vector<int64_t>>(from["batches"]);
  for (const py::handle& row : from["rows"]) {
    using Row = std::tuple<std::string, std::string, std::string, std::string, int64_t, std::vector<double>>;
    const auto [tier, cell, precision, pass, H, us] = py::cast<Row>(row);
    table.rows.push_back(
        {one_of<Tier>("tier", tier, tiers_that(runs_as_asked)),
         one_of<CellKind>("cell", cell,
                          {{"lstm", CellKind::kLstm}, {"gru", CellKind::kGru}, {"rnn", CellKind::kRnnTanh}}),
         one_of<cuda::Precision>("precision", precision,
                                 {{"float32", cuda::Precision::kFloat32},
                                  {"tf32", cuda::Precision::kTf32},
                                  {"bfloat16", cuda::Precision::kBFloat16},
                                  {"float16", cuda::Precision::kHalf}}),
         one_of<cuda::Pass>("pass", pass, {{"forward", cuda::Pass::kForward}, {"backward", cuda::Pass::kBackward}}),
         H, us});
    if (us.size() != table.batches.size()) throw py::value_error("rows: expected a time for each of the batches");
  }
  return table;
}

// rows: "full", "packed" or "masked", which stands for lengths and resets.
LayerShape layer_shape(const std::string& cell, int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int directions,
                       const std::string& dtype, const std::string& rows) {
  LayerShape shape;
  std::vector<std::pair<const char*, CellKind>> cells;
  for (size_t i = 0; i < std::size(kCells); ++i) cells.push_back({kCells[i].name, static_cast<CellKind>(i)});
  const size_t plus = cell.find('+');  // a variant's options
  shape.cell = one_of<CellKind>("cell", cell.substr(0, plus), cells);
  if (plus != std::string::npos) {
    const std::string wrong = read_cell_options(cell, plus, shape.cell, shape.variant);
    if (!wrong.empty()) throw py::value_error(wrong);
  }
  shape.dtype = one_of<Dtype>("dtype", dtype,
                              {{"float32", Dtype::kFloat},
                               {"float64", Dtype::kDouble},
                               {"bfloat16", Dtype::kBFloat16},
                               {"float16", Dtype::kHalf}});
  for (const auto& [name, value] : {std::pair{"T", T}, {"I", I}, {"H", H}, {"directions", int64_t{directions}}}) {
    if (value < 1) throw py::value_error(std::string(name) + ": expected at least 1, got " + std::to_string(value));
  }
  if (B < 0) throw py::value_error("B: expected at least 0, got " + std::to_string(B));
  if (P < 0 || (P && shape.cell != CellKind::kLstm))
    throw py::value_error("P: expected a projection size for an LSTM, or 0");
  if (shape.variant.heads > 1 && (P || H % shape.variant.heads)) {
    throw py::value_error("cell: expected heads that divide hidden_size " + std::to_string(H) +
                          " and no projection, got " + std::to_string(shape.variant.heads));
  }
  if (directions > 2) throw py::value_error("directions: expected 1 or 2, got " + std::to_string(directions));
  shape.T = T;
  shape.B = B;
  shape.I = I;
  shape.H = H;
  shape.P = P;
  shape.D = directions;
  shape.bias = true;
  // A plan asks whether they are there, and never what they say.
  static constexpr int64_t some = 0;
  static constexpr uint8_t reset = 0;
  const int kind = one_of<int>("rows", rows, {{"full", 0}, {"packed", 1}, {"masked", 2}});
  if (kind == 1) shape.batch_sizes = &some;
  if (kind == 2) shape.resets = &reset;
  return shape;
}

std::string key_of(const std::string& cell, int64_t T, int64_t B, int64_t I, int64_t H, int64_t P, int directions,
                   const std::string& dtype, bool tf32, bool training, const std::string& rows) {
  return trust_key(layer_shape(cell, T, B, I, H, P, directions, dtype, rows), tf32, training);
}

py::dict plan(const std::string& device, const std::string& cell, int64_t T, int64_t B, int64_t I, int64_t H,
              int64_t P, int directions, const std::string& dtype, bool training, bool packed, int threads, int lanes,
              int tile_rows, int64_t l2_bytes, int64_t l3_bytes, int meeting_ns, int region_ns,
              const std::optional<py::dict>& gpu, bool tf32, const std::string& tier,
              const std::optional<py::dict>& table, const std::optional<std::string>& trusted,
              const std::string& rows, const std::string& weights) {
  const LayerShape shape = layer_shape(cell, T, B, I, H, P, directions, dtype, device == "cpu" ? "full" : rows);
  const auto at_least = [](const char* name, int64_t value, int64_t least) {
    if (value >= least) return;
    throw py::value_error(std::string(name) + ": expected at least " + std::to_string(least) + ", got " +
                          std::to_string(value));
  };
  at_least("threads", threads, 1);
  at_least("lanes", lanes, 1);
  at_least("tile_rows", tile_rows, 1);
  at_least("l2_bytes", l2_bytes, 1);
  at_least("l3_bytes", l3_bytes, 1);
  at_least("meeting_ns", meeting_ns, 0);
  at_least("region_ns", region_ns, 0);
  // Bytes of a weight, of 4 that it has in float32.
  const int stored = one_of<int>("weights", weights, {{"float32", 4}, {"bfloat16", 2}, {"int8", 1}});
  if (stored != 4 && (device != "cpu" || shape.dtype != Dtype::kFloat || shape.variant.any() || training)) {
    throw py::value_error("weights: expected 'float32' but for inference of a plain float32 layer on the CPU, got '" +
                          weights + "'");
  }
  py::dict result;
  result["device"] = device;
  const CpuMachine machine{.threads = threads,
                           .lanes = lanes,
                           .tile_rows = tile_rows,
                           .l2_bytes = l2_bytes,
                           .l3_bytes = l3_bytes,
                           .meeting_ns = meeting_ns,
                           .region_ns = region_ns};
  if (stored != 4) {
    const CpuPlan chosen = plan_quantized(shape, stored == 1, machine);
    result["kernel"] = weights;
    result["reason"] = "weights of " + weights + ", packed once; " + chosen.reason;
    result["packed_weights"] = true;
    result["direction_groups"] = chosen.direction_groups;
    result["batch_groups"] = chosen.batch_groups;
    result["unit_groups"] = chosen.unit_groups;
    result["forward_chunk"] = chosen.forward_chunk;
  } else if (device == "cpu") {
    const CpuPlan chosen = plan_cpu(shape, machine);
    result["kernel"] = chosen.direct ? "direct" : "packed";
    result["reason"] = chosen.reason;
    result["packed_weights"] = !chosen.direct;
    result["direction_groups"] = chosen.direction_groups;
    result["batch_groups"] = chosen.batch_groups;
    result["unit_groups"] = chosen.unit_groups;
    result["forward_chunk"] = chosen.forward_chunk;
    result["backward_chunk"] = chosen.backward_chunk;
  } else if (device == "cuda") {
    if (!gpu) throw py::value_error("gpu: expected the properties of a device");
    const cuda::CudaDevice properties = cuda_device(*gpu);
    const Tier wanted = one_of<Tier>("tier", tier, tiers_that([](Tier) { return true; }));
    Trust trust;
    if (trusted && !trust.replace(*trusted)) throw py::value_error("trusted: expected lines of a key and two tiers");
    const std::optional<PlanTable> given = table ? std::optional(table_of(*table)) : std::nullopt;
    const auto pass = [&](cuda::Pass which) {
      const PlanTable& times = given ? *given : plan_table();
      const bool unasked = trusted && wanted == Tier::kAuto;
      return cuda_pass(unasked ? plan_trusted(shape, tf32, which, properties, training, trust, times)
                               : plan_cuda(shape, tf32, which, properties, wanted, times));
    };
    for (const auto& [key, value] : pass(cuda::Pass::kForward)) result[key] = value;
    if (training) result["backward"] = pass(cuda::Pass::kBackward);
  } else {
    throw py::value_error("device: expected 'cpu' or 'cuda', got '" + device + "'");
  }
  // A persistent tier keeps its weights.
  const bool on_cpu = device == "cpu",
             kept = !on_cpu && !py::cast<std::string>(result["kernel"]).starts_with("stepwise");
  const LayerCost cost = cost_of(shape, training, on_cpu);
  result["flops"] = cost.flops;
  result["weight_bytes"] = cost.weight_bytes * stored / 4;
  result["step_weight_bytes"] = kept ? int64_t{0} : cost.step_weight_bytes * stored / 4;
  result["saved_bytes_per_step"] = cost.saved_bytes_per_step;
  result["saved_bytes_per_step_recompute"] = cost.saved_bytes_per_step_recompute;
  result["packed"] = packed;
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and kernel plans of fastrnn.";
  m.def("build_info", &build_info);
  m.def("lists", &lists);
  m.def("plan", &plan, py::arg("device"), py::arg("cell"), py::arg("T"), py::arg("B"), py::arg("I"), py::arg("H"),
        py::arg("P") = 0, py::arg("directions") = 1, py::arg("dtype") = "float32", py::arg("training") = false,
        py::arg("packed") = false, py::arg("threads") = 1, py::arg("lanes") = 16, py::arg("tile_rows") = 6,
        py::arg("l2_bytes") = CpuMachine().l2_bytes, py::arg("l3_bytes") = CpuMachine().l3_bytes,
        py::arg("meeting_ns") = CpuMachine().meeting_ns, py::arg("region_ns") = CpuMachine().region_ns,
        py::arg("gpu") = py::none(), py::arg("tf32") = false, py::arg("tier") = "auto", py::arg("table") = py::none(),
        py::arg("trusted") = py::none(), py::arg("rows") = "full", py::arg("weights") = "float32");
  m.def("trust_key", &key_of, py::arg("cell"), py::arg("T"), py::arg("B"), py::arg("I"), py::arg("H"),
        py::arg("P") = 0, py::arg("directions") = 1, py::arg("dtype") = "float32", py::arg("tf32") = false,
        py::arg("training") = false, py::arg("rows") = "full");
  add_stream_type(m);
  add_layer_type(m);
  m.def("plan_table_provenance", [] { return plan_table().provenance; });
}
