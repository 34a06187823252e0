"""In the persistent kernels."""

from __future__ import annotations

from ..build import Fault

FAULTS = {
    "race: one CTA without its barrier": Fault(
        "persistent/kernel.cuh", "__syncthreads()", "void()", "struct OneCta {"
    ),
    "race: one CTA with one buffer": Fault(
        "persistent/kernel.cuh", "buffers + (i & 1) * words", "buffers + 0 * words"
    ),
    "race: grid with one buffer": Fault("persistent/kernel.cuh", "2 * replica + (i & 1)", "2 * replica"),
    "race: the flag counts as whole one arrival early": Fault(
        "persistent/kernel.cuh",
        "static_cast<uint64_t>(i + 1) * arrivals",
        "static_cast<uint64_t>(i + 1) * arrivals - 1",
    ),
    "race: the flag is read without acquire": Fault(
        "persistent/kernel.cuh", "load_acquire(flag())", "poll_relaxed(flag())"
    ),
    "race: arrivals are counted without release": Fault(
        "persistent/kernel.cuh", "add_release(flag(), 1)", "add_relaxed(flag(), 1)"
    ),
    "race: the sums do not wait for their parts": Fault(
        "persistent/products.cuh", "__syncthreads()", "void()", "float4* part ="
    ),
    "sums: the last warp's part is left out": Fault(
        "persistent/products.cuh", "round * kWarps + w < split", "round * kWarps + w < split - 1"
    ),
    "sums: of parts that are read together all are the first": Fault(
        "persistent/products.cuh", "there(w) ? parts + w * stride : parts", "parts"
    ),
    "sums: a part that is not there is added": Fault(
        "persistent/products.cuh", "there(w)", "true", "v[w][s] = part[s * 32];"
    ),
    "whole tiles: a layer that ends within one is taken for one": Fault(
        "persistent/launch.cuh", "p.shape.H % kTileUnits == 0", "true"
    ),
    "whole tiles: pairs that begin at odd elements are loaded at once": Fault(
        "persistent/launch.cuh", "cut.whole_pairs", "true", "bool whole = "
    ),
    "whole tiles: other tiers take them": Fault(
        "persistent/launch.cuh", "g.tier == Tier::kOneCta", "true", "bool whole = "
    ),
    "whole tiles: rows that end go on": Fault("persistent/launch.cuh", "!p.lengths", "true"),
    "whole tiles: no sequence begins within the rows": Fault("persistent/launch.cuh", "!p.resets", "true"),
    "race: whole tiles, forward without its barrier": Fault(
        "persistent/forward_whole.cuh", "exchange.wait(s)", "exchange.slot(s)"
    ),
    "race: whole tiles, backward without its barrier": Fault(
        "persistent/backward_whole.cuh", "exchange.wait(i)", "exchange.slot(i)"
    ),
    "race: whole tiles, h is published where it is read": Fault(
        "persistent/forward_whole.cuh", "s + 1", "s", "if (!last) {"
    ),
    "whole tiles: forward reads rows beyond the batch": Fault(
        "persistent/forward_whole.cuh", "j < rows", "true", "const T* from = row;"
    ),
    "whole tiles: forward writes rows beyond the batch": Fault(
        "persistent/forward_whole.cuh", "j < rows", "true", "T* to = to_gates;"
    ),
    "whole tiles: both directions run forwards": Fault("persistent/forward_whole.cuh", "d ? -B : B", "B"),
    "whole tiles: y moves on by the rows of one direction": Fault(
        "persistent/forward_whole.cuh", "time * D * H", "time * H"
    ),
    "whole tiles: the saved gates do not move on": Fault("persistent/forward_whole.cuh", "time * S * H", "0"),
    "whole tiles: backward reads rows beyond the batch": Fault(
        "persistent/backward_whole.cuh", "j < rows", "true", "const T* from = row;"
    ),
    "whole tiles: backward writes rows beyond the batch": Fault(
        "persistent/backward_whole.cuh", "j < rows", "true", "T* to = to_dgates;"
    ),
    "whole tiles: the first step has one before it": Fault(
        "persistent/backward_whole.cuh", "i + 2 == T_steps", "false"
    ),
    "whole tiles: the gradient of y does not move on": Fault(
        "persistent/backward_whole.cuh", "time * p.grad_y_stride", "0"
    ),
    "whole tiles: the GRU's gradients in another order": Fault(
        "persistent/backward_whole.cuh", "k == 0 ? G - 1 : k - 1", "k"
    ),
    "whole tiles: the gradient of h0 lacks the first step's": Fault(
        "persistent/backward_whole.cuh", "p.dh0 ? T_steps : T_steps - 1", "T_steps - 1"
    ),
    "whole tiles: products beyond the layer": Fault(
        "persistent/products_whole.cuh", "i == 0 || i < tiles", "true"
    ),
    "whole tiles: the second tile meets the first one's values": Fault(
        "persistent/products_whole.cuh", "(first + n) * P::kTileWords", "first * P::kTileWords"
    ),
    "whole tiles: every gate meets the first one's gradient": Fault(
        "persistent/products_whole.cuh", "pass == Pass::kForward ? 0 : gate", "0"
    ),
    "race: the products do not wait for the copies": Fault(
        "persistent/operand_copies.cuh", "wait_copies<0>()", "void()"
    ),
    "race: of two pieces on their way the first is not waited for": Fault(
        "persistent/operand_copies.cuh", "wait_copies<1>()", "wait_copies<2>()"
    ),
    "race: of four pieces on their way none is waited for": Fault(
        "persistent/operand_copies.cuh", "wait_copies<3>()", "wait_copies<4>()"
    ),
    "race: a lane reads what another one copies": Fault(
        "persistent/operand_copies.cuh", "__syncwarp()", "void()", "take() {"
    ),
    "race: a place is filled again while a lane reads it": Fault(
        "persistent/operand_copies.cuh", "__syncwarp()", "void()", "drop() {"
    ),
    "race: two warps share their places": Fault(
        "persistent/operand_copies.cuh", "at.warp * cut.copies_ahead", "0 * cut.copies_ahead"
    ),
    "copies: every piece is the first one": Fault(
        "persistent/operand_copies.cuh", "cut.tile_slots * kTileWords", "0 * kTileWords"
    ),
    "copies: a piece less is asked for": Fault(
        "persistent/operand_copies.cuh", "cut.n_tiles * operand_gates", "cut.n_tiles * operand_gates - 1"
    ),
    "copies: tiles beyond the layer's": Fault(
        "persistent/operand_copies.cuh", "first + i * kStride < at.end", "true", "const auto copy ="
    ),
    "copies: those of the weights in shared memory are left out": Fault(
        "persistent/operand_copies.cuh", "at.first + i * kStride < at.end", "false", "int i = kBehind;"
    ),
    "race: another thread than the polling one says that nothing has failed": Fault(
        "persistent/kernel.cuh", "polls()", "threadIdx.x == 0", "and written by this thread alone."
    ),
    "grid: the weights in shared memory are those of neighbouring tiles": Fault(
        "persistent/products.cuh", "(kTiles + first + i) * kStride", "(kTiles + first + i)"
    ),
    "grid: the weights in shared memory meet the first tiles": Fault(
        "persistent/products.cuh", "first + kTiles * kTileWords", "first", "const uint32_t* words ="
    ),
    "grid: every tile in shared memory is the first one": Fault(
        "persistent/products.cuh",
        "weights += kKeptWords",
        "weights += 0",
        "gate == operand_gate) multiply_kept_gate",
    ),
    "grid: a warp with fewer tiles multiplies what lies behind them": Fault(
        "persistent/products.cuh", "at.first + (kTiles + i) * kStride < at.end", "true"
    ),
    "weights: loads go on beyond the layer": Fault(
        "persistent/weights.cuh", "row + r < row_end && column + i < column_end", "true"
    ),
    "weights: rows of a block change places": Fault(
        "persistent/weights.cuh", "words + r * kRowWords", "words + (r ^ 1) * kRowWords"
    ),
    "weights: every load takes as many elements as it can": Fault(
        "persistent/launch.cu",
        "elements_at_once(p.w_hh, p.w_hh_stride, p.shape.D, element, H)",
        "4",
        "{p.cells, sizeof(float), H}},",
    ),
    "weights: a chunk of tiles overwrites the one before": Fault(
        "persistent/products.cuh", "(first + i) * kKeptWords", "i * kKeptWords"
    ),
    "weights: all warps of a CTA are given the room of those that keep fewest": Fault(
        "persistent/products.cuh",
        "at.warp < before ? at.warp * tiles : before * fewer + (at.warp - before) * tiles",
        "at.warp * fewer",
    ),
    "cluster: a tile of units with a warp more is split as the others": Fault(
        "persistent/kernel.cuh",
        "part_tiles(cut.unit_tiles, at.split)",
        "part_tiles(cut.unit_tiles, cut.k_split)",
    ),
    "forward: a row that has ended goes on": Fault(
        "persistent/forward.cuh", "lane_rows.run(now, j)", "true", "bool active ="
    ),
    "forward: a row runs for a step too many": Fault(
        "persistent/memory.cuh",
        "static_cast<unsigned>(lengths[j])",
        "static_cast<unsigned>(lengths[j]) + 1",
        "bool run(",
    ),
    "forward: both directions take the first one's bias": Fault(
        "persistent/biases.cuh", "p.b_ih[d]", "p.b_ih[0]", "of_input[n] ="
    ),
    "forward: the next step's gx is this one's": Fault(
        "persistent/forward.cuh", "schedule.at(s + 1)", "now", "nobody waits"
    ),
    "projection: a row's later steps are taken for its first": Fault(
        "persistent/projection.cuh", "i / rows", "0"
    ),
    "projection: both directions by the first one's weights": Fault(
        "persistent/projection.cuh", "p.w_ih[d]", "p.w_ih[0]"
    ),
    "projection: rows that have ended are made too": Fault(
        "persistent/projection.cuh", "p.lengths ? p.lengths[column.row] : p.shape.T", "p.shape.T"
    ),
    "backward: a row that has not begun passes its gradient on": Fault(
        "persistent/backward.cuh", "active ? dh_prev : dh", "dh_prev"
    ),
    "backward: the GRU's gradients in another order": Fault(
        "persistent/backward.cuh", "k == G - 1 ? 0 : k + 1", "k"
    ),
    "backward: every row has a previous step": Fault(
        "persistent/backward.cuh", "!lane_rows.run(previous, j)", "false", "bool starts ="
    ),
    "backward: the product passes a reset": Fault(
        "persistent/backward.cuh", "in.begins", "0", "      begun ="
    ),
    "backward: the gradient of c passes a reset": Fault(
        "persistent/backward.cuh", "begins ? 0.0f : dc_prev", "dc_prev"
    ),
    "backward: the state before a reset is that step's": Fault(
        "persistent/backward.cuh", "begins ? 0.0f : in.c_prev[j][u]", "in.c_prev[j][u]"
    ),
    "cluster: a CTA pushes nothing to itself": Fault(
        "persistent/kernel.cuh", "n < cut.peers", "n + 1 < cut.peers"
    ),
    "race: a CTA stores its own tiles and pushes them to the others": Fault(
        "persistent/kernel.cuh",
        "push(peer_address(data, peer), words, peer_address(bar, peer))",
        "peer != rank ? push(peer_address(data, peer), words, peer_address(bar, peer))"
        " : void((memcpy(slot(i) + offset + target * F::kWords, &words, sizeof words),"
        " emu::mbar(emu::S.cur->blk, bar, emu::Loc::current()).tx -= sizeof words))",
    ),
    "cluster: more bytes expected than come": Fault(
        "persistent/kernel.cuh",
        "static_cast<uint32_t>(cut.operand_words * 4)",
        "uint32_t(cut.operand_words) * 4 + 8",
    ),
    "cluster: fewer bytes expected than come": Fault(
        "persistent/kernel.cuh",
        "static_cast<uint32_t>(cut.operand_words * 4)",
        "uint32_t(cut.operand_words) * 4 - 8",
    ),
    "cluster: a barrier expects bytes after the last publication": Fault(
        "persistent/kernel.cuh", "i + 2 < publications", "true"
    ),
    "race: cluster with one buffer": Fault(
        "persistent/kernel.cuh", "buffers + (i & 1) * cut.operand_words", "buffers + 0 * cut.operand_words"
    ),
    "cluster: the other buffer is read": Fault(
        "persistent/kernel.cuh", "slot(i)", "slot(i + 1)", "barriers.wait(i);"
    ),
    "cluster: the other buffer's barrier counts": Fault(
        "persistent/kernel.cuh", "barriers.address(i)", "barriers.address(i + 1)", " bar = "
    ),
    "cluster: warps read before the bytes are there": Fault(
        "persistent/kernel.cuh", "phase_over(i)", "true", "void wait(int i) {"
    ),
    "race: one warp of a CTA waits for all": Fault(
        "persistent/kernel.cuh", "phase_over(i)", "(threadIdx.x >= 32 || phase_over(i))", "void wait(int i) {"
    ),
    "cluster: the phase's parity is the publication's": Fault(
        "persistent/kernel.cuh", "(i >> 1) & 1", "i & 1"
    ),
    "cluster: pushes into CTAs that have not begun": Fault(
        "persistent/kernel.cuh", "cluster_barrier()", "void()", "if (n > 1) arm(1);"
    ),
    "cluster: padded tiles are not pushed": Fault(
        "persistent/forward.cuh",
        "exchange.template write<F>(i, P::offset(cut, at.row_tile, 0, at.unit_tile), at.lane, rows)",
        "at.unit_tile < cut.unit_tiles"
        " ? exchange.template write<F>(i, P::offset(cut, at.row_tile, 0, at.unit_tile), at.lane, rows)"
        " : void()",
    ),
    "cluster: every weight from shared memory is the first tile's": Fault(
        "persistent/products.cuh", "tile - at.first - kTiles", "0 * tile"
    ),
    "race: the products do not wait for the gates' gradient": Fault(
        "persistent/backward_scattered.cuh", "__syncthreads()", "void()", "void publish(int i"
    ),
    "race: one buffer for the gates' gradient": Fault(
        "persistent/backward_scattered.cuh",
        "(i & 1) * static_cast<int>(cut.operand_words)",
        "0 * static_cast<int>(cut.operand_words)",
    ),
    "race: one buffer for the peers' parts": Fault(
        "persistent/backward_scattered.cuh", "(i & 1) * cut.slot_words", "0 * cut.slot_words"
    ),
    "race: a CTA stores its own part and pushes the others": Fault(
        "persistent/backward_scattered.cuh",
        "push(peer_address(to, owner), words, peer_address(bar, owner))",
        "owner != rank ? push(peer_address(to, owner), words, peer_address(bar, owner))"
        " : void((memcpy(emu::at(emu::S.cur->blk, to, 16, emu::Loc::current()), &words, sizeof words),"
        " emu::mbar(emu::S.cur->blk, bar, emu::Loc::current()).tx -= sizeof words,"
        " emu::mbar_check(emu::mbar(emu::S.cur->blk, bar, emu::Loc::current()), emu::Loc::current())))",
    ),
    "race: the parts are added up before they are there": Fault(
        "persistent/backward_scattered.cuh", "barriers.wait(i)", "void()"
    ),
    "race: the sum does not wait for one of the peers": Fault(
        "persistent/backward_scattered.cuh", "cut.peers * own_tiles", "(cut.peers - 1) * own_tiles"
    ),
    "scattered: more bytes expected than come": Fault(
        "persistent/backward_scattered.cuh", "kSlotBytes", "32 * 16 + 16", "barriers.bytes ="
    ),
    "scattered: fewer bytes expected than come": Fault(
        "persistent/backward_scattered.cuh", "kSlotBytes", "32 * 16 - 16", "barriers.bytes ="
    ),
    "scattered: the phase after next is waited for": Fault(
        "persistent/backward_scattered.cuh", "barriers.wait(i)", "barriers.wait(i + 2)"
    ),
    "scattered: the other buffer's barrier counts": Fault(
        "persistent/backward_scattered.cuh", "barriers.address(i)", "barriers.address(i + 1)"
    ),
    "scattered: one peer's part is not added": Fault(
        "persistent/backward_scattered.cuh", "sender < cut.peers", "sender + 1 < cut.peers"
    ),
    "scattered: a CTA with fewer tiles waits for the parts of all": Fault(
        "persistent/backward_scattered.cuh", "left < cut.cta_tiles ? left : cut.cta_tiles", "cut.cta_tiles"
    ),
    "scattered: a pair's missing output is pushed too": Fault(
        "persistent/backward_scattered.cuh", "first + o < cut.unit_tiles", "true", "o == 0 || "
    ),
    "scattered: every group from shared memory is the first one": Fault(
        "persistent/backward_scattered.cuh", "kKeptWords", "0", "first < cut.unit_tiles; from += "
    ),
    "scattered: two warps' weights share a place": Fault(
        "persistent/backward_scattered.cuh", "before * kKeptWords", "0 * before"
    ),
    "fragments: two words of B change places": Fault(
        "persistent/fragments.cuh", "(g & 1)", "1 - (g & 1)", "kWords = 2"
    ),
}
