// The Python module fastrnn._C: what was built, and the plan of a layer. Knows no torch, so that it
// can be asked anywhere; the operators are in libfastrnn_cpu and libfastrnn_cuda.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "plan/cpu.h"
#include "plan/cuda.h"
#include "plan/table.h"

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

const std::vector<std::pair<const char*, CudaTier>> kTiers = {{"auto", CudaTier::kAuto},
                                                              {"one_cta", CudaTier::kOneCta},
                                                              {"cluster", CudaTier::kCluster},
                                                              {"grid", CudaTier::kGrid},
                                                              {"stepwise", CudaTier::kStepwise}};

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
  if (chosen.tier == CudaTier::kStepwise) return out;
  const cuda::PersistentGeometry& g = chosen.geometry;
  if (g.pass == cuda::Pass::kForward) out["input_projection"] = chosen.projects ? "in the kernel" : "before it";
  out["ctas"] = g.ctas;
  if (g.tier == cuda::Tier::kCluster) out["cluster"] = g.ctas_per_replica;
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
        {one_of<CudaTier>("tier", tier, kTiers),
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

py::dict plan(const std::string& device, const std::string& cell, int64_t T, int64_t B, int64_t I, int64_t H,
              int64_t P, int directions, const std::string& dtype, bool training, bool packed, int threads,
              int vector_bytes, const std::optional<py::dict>& gpu, bool tf32, const std::string& tier,
              const std::optional<py::dict>& table) {
  LayerShape shape;
  shape.cell = one_of<CellKind>("cell", cell,
                                {{"lstm", CellKind::kLstm},
                                 {"gru", CellKind::kGru},
                                 {"rnn_tanh", CellKind::kRnnTanh},
                                 {"rnn_relu", CellKind::kRnnRelu}});
  shape.dtype = one_of<Dtype>("dtype", dtype,
                              {{"float32", Dtype::kFloat},
                               {"float64", Dtype::kDouble},
                               {"bfloat16", Dtype::kBFloat16},
                               {"float16", Dtype::kHalf}});
  for (const auto& [name, value] :
       {std::pair{"T", T}, {"I", I}, {"H", H}, {"directions", int64_t{directions}}, {"threads", int64_t{threads}}}) {
    if (value < 1) throw py::value_error(std::string(name) + ": expected at least 1, got " + std::to_string(value));
  }
  if (vector_bytes != 16 && vector_bytes != 32 && vector_bytes != 64) {
    throw py::value_error("vector_bytes: expected 16, 32 or 64, got " + std::to_string(vector_bytes));
  }
  if (B < 0) throw py::value_error("B: expected at least 0, got " + std::to_string(B));
  if (P < 0 || (P && cell != "lstm")) throw py::value_error("P: expected a projection size for an LSTM, or 0");
  if (directions > 2) throw py::value_error("directions: expected 1 or 2, got " + std::to_string(directions));
  shape.T = T;
  shape.B = B;
  shape.I = I;
  shape.H = H;
  shape.P = P;
  shape.D = directions;
  shape.bias = true;
  const int64_t G = gates_of(shape.cell), out = shape.out_size();
  const int64_t element = shape.dtype == Dtype::kDouble ? 8 : 4;
  const int64_t storage = static_cast<int64_t>(size_of(shape.dtype));
  const bool lstm = shape.cell == CellKind::kLstm;

  py::dict result;
  result["device"] = device;
  if (device == "cpu") {
    CpuMachine machine;
    machine.threads = threads;
    machine.lanes = vector_bytes / static_cast<int>(element);
    machine.tile_rows = vector_bytes == 64 ? 6 : 3;
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
    const CudaTier wanted = one_of<CudaTier>("tier", tier, kTiers);
    const std::optional<PlanTable> given = table ? std::optional(table_of(*table)) : std::nullopt;
    const auto pass = [&](cuda::Pass which) {
      return cuda_pass(plan_cuda(shape, tf32, which, properties, wanted, given ? *given : plan_table()));
    };
    for (const auto& [key, value] : pass(cuda::Pass::kForward)) result[key] = value;
    if (training) result["backward"] = pass(cuda::Pass::kBackward);
  } else {
    throw py::value_error("device: expected 'cpu' or 'cuda', got '" + device + "'");
  }
  // The cost model: what the arithmetic and the recurrent weights ask for at least.
  const double rows = static_cast<double>(T) * static_cast<double>(B) * directions;
  const double product = 2.0 * rows * static_cast<double>(G * H * (I + out) + P * H);
  result["flops"] = training ? 3 * product : product;
  result["weight_bytes"] = storage * directions * (G * H * (I + out) + P * H);
  // The CPU multiplies in float at least, a persistent tier keeps its weights.
  const bool kept = device == "cuda" && py::cast<std::string>(result["kernel"]) != "stepwise";
  result["step_weight_bytes"] =
      kept ? int64_t{0} : (device == "cuda" ? storage : element) * directions * (G * H * out + P * H);
  result["saved_bytes_per_step"] =
      training ? directions * B * (storage * (saved_of(shape.cell) * H) + (lstm ? element * H : 0)) : int64_t{0};
  result["saved_bytes_per_step_recompute"] = training ? directions * B * (lstm ? element * H : 0) : int64_t{0};
  result["packed"] = packed;
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and kernel plans of fastrnn.";
  m.def("build_info", &build_info);
  m.def("plan", &plan, py::arg("device"), py::arg("cell"), py::arg("T"), py::arg("B"), py::arg("I"), py::arg("H"),
        py::arg("P") = 0, py::arg("directions") = 1, py::arg("dtype") = "float32", py::arg("training") = false,
        py::arg("packed") = false, py::arg("threads") = 1, py::arg("vector_bytes") = 64, py::arg("gpu") = py::none(),
        py::arg("tf32") = false, py::arg("tier") = "auto", py::arg("table") = py::none());
  m.def("plan_table_provenance", [] { return plan_table().provenance; });
}
