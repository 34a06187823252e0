// Compiled where cuda.cpp is.
#include "plan/table.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace fastrnn {
namespace {

double between(double x0, double y0, double x1, double y1, double x) {
  if (x1 <= x0) return y0;
  const double part = std::clamp(std::log(x / x0) / std::log(x1 / x0), 0.0, 1.0);
  // The ends to the bit: a grid point is its own timing.
  return part == 0 ? y0 : part == 1 ? y1 : y0 * std::pow(y1 / y0, part);
}

double in_row(const PlanTable& table, const PlanRow& row, int64_t B, bool& found) {
  int low = -1, high = -1;  // the timings to both sides
  for (int i = 0; i < static_cast<int>(table.batches.size()); ++i) {
    if (!(row.us[i] > 0)) continue;
    if (low < 0 || table.batches[i] <= B) low = i;
    high = i;
    if (table.batches[i] >= B) break;
  }
  if (low < 0) return 0;
  found = table.batches[low] == B || table.batches[high] == B;
  return between(table.batches[low], row.us[low], table.batches[high], row.us[high], B);
}

}  // namespace

const PlanTable& plan_table() {
  static const PlanTable table = [] {
    using enum Tier;
    using enum CellKind;
    using enum cuda::Precision;
    using enum cuda::Pass;
    return PlanTable
#include "plan/table.inl"
        ;
  }();
  return table;
}

double table_us(const PlanTable& table, Tier tier, CellKind cell, cuda::Precision precision, cuda::Pass pass,
                int64_t& H, int64_t& B, bool& found) {
  found = false;
  if (cell == CellKind::kRnnRelu) cell = CellKind::kRnnTanh;
  const auto kind = [](const PlanRow& row) { return std::tie(row.tier, row.cell, row.precision, row.pass); };
  const auto wanted = std::tie(tier, cell, precision, pass);
  auto first = std::partition_point(table.rows.begin(), table.rows.end(),
                                    [&](const PlanRow& row) { return kind(row) < wanted; });
  const PlanRow *low = nullptr, *high = nullptr;
  for (; first != table.rows.end() && kind(*first) == wanted; ++first) {
    if (first->H <= H || !low) low = &*first;
    high = &*first;
    if (first->H >= H) break;
  }
  if (!low) return 0;
  H = std::clamp(H, low->H, high->H);
  B = std::clamp(B, table.batches.front(), table.batches.back());
  bool in_low = false, in_high = false;
  const double us0 = in_row(table, *low, B, in_low), us1 = in_row(table, *high, B, in_high);
  found = (low->H == H && in_low) || (high->H == H && in_high);
  return us0 > 0 && us1 > 0 ? between(low->H, us0, high->H, us1, H) : 0;
}

}  // namespace fastrnn
