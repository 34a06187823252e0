// AMX on a processor without it: a program's six instructions for tiles of bfloat16 are illegal there, and this is
// the handler that computes them instead (Intel's Software Developer's Manual, volume 2), one at a time. What a
// register holds is a thread's own, as on the processor.
//
// It is stricter than one: shapes that a processor may not refuse, but that no kernel means, end the program.
#pragma once
#if defined(__x86_64__) && defined(__linux__)
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

namespace tiles {

struct Tile {
  int rows, bytes;  // 0: not configured
  alignas(64) uint8_t data[16][64];
};
inline thread_local Tile registers[8];
inline thread_local bool configured = false;
inline uint64_t instructions_run = 0;

[[noreturn]] inline void give_up(const char* why) {
  const char text[] = "emulated tiles: ";
  (void)!write(2, text, sizeof text - 1);
  (void)!write(2, why, std::strlen(why));
  (void)!write(2, "\n", 1);
  _exit(70);
}
inline void require(bool right, const char* why) {
  if (!right) give_up(why);
}

// LDTILECFG: palette 1, a tile's bytes a row at 16 + 2 i, its rows at 48 + i. All tiles become zero.
inline void configure(const uint8_t* from) {
  require(from[0] == 1 && from[1] == 0, "a palette other than 1, or a start row");
  for (int i = 2; i < 16; ++i) require(from[i] == 0, "reserved bytes of a configuration");
  for (int i = 0; i < 16; ++i) {
    uint16_t bytes;
    std::memcpy(&bytes, from + 16 + 2 * i, 2);
    const int rows = from[48 + i];
    require(i < 8 || (bytes == 0 && rows == 0), "a ninth tile");
    require(bytes <= 64 && rows <= 16 && (bytes == 0) == (rows == 0), "a tile larger than 16 rows of 64 bytes");
    if (i < 8) {
      registers[i].rows = rows, registers[i].bytes = bytes;
      std::memset(registers[i].data, 0, sizeof registers[i].data);
    }
  }
  configured = true;
}

inline float widened(const uint8_t* bfloat16) {
  uint16_t half;
  std::memcpy(&half, bfloat16, 2);
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// TDPBF16PS: of each sum the even products and the odd ones, in the order of the rows.
inline void dot(Tile& sums, const Tile& left, const Tile& right) {
  require(sums.rows && left.rows && right.rows, "a product of tiles that are not configured");
  require(left.bytes % 4 == 0 && sums.bytes == right.bytes && right.bytes % 4 == 0, "rows that are no pairs");
  require(left.rows == sums.rows && right.rows == left.bytes / 4, "shapes that do not fit");
  for (int m = 0; m < sums.rows; ++m) {
    for (int n = 0; n < sums.bytes / 4; ++n) {
      float even = 0, odd = 0, sum;
      for (int k = 0; k < right.rows; ++k) {
        even += widened(left.data[m] + 4 * k) * widened(right.data[k] + 4 * n);
        odd += widened(left.data[m] + 4 * k + 2) * widened(right.data[k] + 4 * n + 2);
      }
      std::memcpy(&sum, sums.data[m] + 4 * n, 4);
      sum += even + odd;
      std::memcpy(sums.data[m] + 4 * n, &sum, 4);
    }
  }
}

// A VEX instruction of map 0F38 that this knows, executed. Its length, or 0.
inline int execute(const uint8_t* code, const greg_t* gregs) {
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2) return 0;
  const bool extend_reg = !(code[1] & 0x80), extend_index = !(code[1] & 0x40), extend_base = !(code[1] & 0x20);
  const int prefix = code[2] & 3, third = (~code[2] >> 3) & 15, opcode = code[3];
  const int mod = code[4] >> 6, reg = (code[4] >> 3) & 7, rm = code[4] & 7;
  if ((code[2] & 0x84) || extend_reg) return 0;  // W0, L0
  static constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                         REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  int length = 5;
  uint64_t address = 0, stride = 0;
  if (mod != 3) {
    if (mod == 0 && rm == 5) return 0;  // relative to the instruction: no kernel's
    if (rm == 4) {
      const uint8_t sib = code[length++];
      const int base = (sib & 7) | extend_base << 3, index = ((sib >> 3) & 7) | extend_index << 3;
      if (!(mod == 0 && (sib & 7) == 5)) {
        address = static_cast<uint64_t>(gregs[kRegisters[base]]);
      } else {
        return 0;
      }
      if (index != 4) stride = static_cast<uint64_t>(gregs[kRegisters[index]]) << (sib >> 6);
    } else {
      address = static_cast<uint64_t>(gregs[kRegisters[rm | extend_base << 3]]);
    }
    if (mod == 1) {
      address += static_cast<int64_t>(static_cast<int8_t>(code[length]));
      length += 1;
    } else if (mod == 2) {
      int32_t by;
      std::memcpy(&by, code + length, 4);
      address += static_cast<int64_t>(by);
      length += 4;
    }
  }
  uint8_t* const memory = reinterpret_cast<uint8_t*>(address);
  if (opcode == 0x49 && prefix == 0 && mod != 3 && reg == 0) {  // LDTILECFG
    configure(memory + stride);
  } else if (opcode == 0x49 && prefix == 0 && code[4] == 0xc0) {  // TILERELEASE
    configured = false;
    for (Tile& tile : registers) tile = {};
  } else if (opcode == 0x4b && mod != 3 && rm == 4 && (prefix == 3 || prefix == 2)) {  // TILELOADD, TILESTORED
    require(configured, "no configuration");
    Tile& tile = registers[reg];
    require(tile.rows, "a tile that is not configured");
    for (int m = 0; m < tile.rows; ++m) {
      uint8_t* const row = memory + static_cast<uint64_t>(m) * stride;
      prefix == 3 ? std::memcpy(tile.data[m], row, tile.bytes) : std::memcpy(row, tile.data[m], tile.bytes);
    }
  } else if (opcode == 0x5c && prefix == 2 && mod == 3) {  // TDPBF16PS
    require(configured, "no configuration");
    require(reg != rm && reg != third && rm != third && third < 8, "tiles that are not three");
    dot(registers[reg], registers[rm], registers[third]);
  } else {
    return 0;
  }
  return length;
}

inline void trap(int, siginfo_t*, void* context) {
  greg_t* const gregs = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const int length = execute(reinterpret_cast<const uint8_t*>(gregs[REG_RIP]), gregs);
  require(length, "an illegal instruction of another kind");
  gregs[REG_RIP] += length;
  __atomic_fetch_add(&instructions_run, 1, __ATOMIC_RELAXED);
}

// From here on, tiles' instructions that are illegal are computed.
inline void emulate() {
  struct sigaction action = {};
  action.sa_sigaction = trap;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace tiles
#endif
