/* The grid tier's exchange (csrc/cuda/persistent/kernel.cuh, struct Grid) for spin: N CTAs of a replica publish T
 * times into two buffers and count on a flag; memory is weak.
 *
 * A tile of publication i holds i+1 here, 0 is what lay there before. A store becomes visible at any time after it is
 * made, at the latest by its warp's release; a load returns anything from what the CTA's last acquire guarantees to
 * what is visible now. The flag itself is one place, on which nobody goes back.
 *
 * FAULT is one of the mistakes below. With LOSE one arrival may get lost: then some wait times out, when nothing else
 * can happen. Checked: a warp that has not given up reads the publication it waits for and nothing else, in every
 * tile and every part of the sums; nobody gives up unless a signal was lost; and every warp reaches its end.
 */
#define ONE_BUFFER 1        /* both publications lie in one */
#define ARRIVAL_EARLY 2     /* the flag counts as whole one arrival early */
#define NO_ACQUIRE 3        /* the flag is read without acquire */
#define NO_RELEASE 4        /* arrivals are counted without release */
#define NO_SUMS_BARRIER 5   /* the sums do not wait for their parts */
#define NO_WAIT_BARRIER 6   /* only the polling warp waits */
#define GOES_ON 7           /* a CTA that gave up counts on */

#ifndef FAULT
#define FAULT 0
#endif
#ifndef LOSE
#define LOSE 0
#endif
#ifndef HASTY
#define HASTY 0
#endif
#if HASTY
#define TIME_OUT true
#else
#define TIME_OUT timeout
#endif
#ifndef N
#define N 2  /* CTAs */
#endif
#ifndef FINISHING
#define FINISHING 1  /* warps of a CTA that publish, of its two: tiles of rows */
#endif
#define W 2
#ifndef T
#define T 4  /* publications */
#endif
#define TILES (N * FINISHING)
#define NAN 255

#if FAULT == ONE_BUFFER
#define BUFFER(i) 0
#else
#define BUFFER(i) ((i) & 1)
#endif
#define PLACE(i, tile) (BUFFER(i) * TILES + (tile))

byte flag;
byte visible[2 * TILES];      /* of a tile in a buffer */
byte written[2 * TILES];      /* what its writer has stored there, visible or not */
byte released[2 * TILES];     /* what the writer's last release has made sure of */
byte known[N * 2 * TILES];    /* what the reading CTA's last acquire has */
byte part[N * W];
byte arrived[N];
bit turn[N];
bool poison[N], abandoned, lost;

inline sync() {
  atomic {
    arrived[c]++;
    if
    :: arrived[c] == W -> arrived[c] = 0; turn[c] = 1 - turn[c]
    :: else
    fi
  }
  turn[c] != mine;
  mine = 1 - mine
}

inline publish(i) {
  written[PLACE(i, c * FINISHING + w)] = i + 1;
  atomic {
#if FAULT != NO_RELEASE
    visible[PLACE(i, c * FINISHING + w)] = i + 1;
    released[PLACE(i, c * FINISHING + w)] = i + 1;
#endif
    if
    :: LOSE && !lost -> lost = true
    :: flag++
    fi
  }
}

/* of one tile, by a warp: as old or as new as it may be */
inline load(i, tile) {
  if
  :: v = known[c * 2 * TILES + PLACE(i, tile)]
  :: v = visible[PLACE(i, tile)]
  fi
}

proctype store(byte p) {  /* becomes visible */
end:
  do
  :: atomic { written[p] != visible[p] -> visible[p] = written[p] }
  od
}

proctype warp(byte c; byte w) {
  byte i, k, v;
  bit mine;
  bool bad;
  if
  :: w < FINISHING -> publish(0)
  :: else
  fi;
  do
  :: i < T ->
    if
    :: w == 0 && !poison[c] ->
      if
#if FAULT == ARRIVAL_EARLY
      :: atomic { flag >= (i + 1) * TILES - 1 && !abandoned ->
#else
      :: atomic { flag >= (i + 1) * TILES && !abandoned ->
#endif
#if FAULT != NO_ACQUIRE
          k = 0;
          do
          :: k < 2 * TILES -> known[c * 2 * TILES + k] = released[k]; k++
          :: else -> break
          od
#endif
        }
      :: atomic { abandoned -> poison[c] = true }
      :: atomic { TIME_OUT -> assert(lost || HASTY); poison[c] = true; abandoned = true }
      fi
    :: else
    fi;
#if FAULT != NO_WAIT_BARRIER
    sync();
#endif
    bad = poison[c];
    k = 0;
    do
    :: k < TILES -> atomic { load(i, k); assert(bad || v == i + 1); v = 0; k++ }
    :: else -> break
    od;
    if
    :: bad -> part[c * W + w] = NAN
    :: else -> part[c * W + w] = i + 1
    fi;
#if FAULT != NO_SUMS_BARRIER
    sync();
#endif
    if
    :: w < FINISHING ->
      k = 0;
      do
      :: k < W -> atomic { assert(part[c * W + k] == (bad -> NAN : i + 1)); k++ }
      :: else -> break
      od;
      if
#if FAULT == GOES_ON
      :: i + 1 < T -> publish(i + 1)
#else
      :: i + 1 < T && !bad -> publish(i + 1)
#endif
      :: else
      fi
    :: else
    fi;
    i++
  :: else -> break
  od
}

init {
  byte n;
  atomic {
    do
    :: n < 2 * TILES -> run store(n); n++
    :: else -> break
    od;
    n = 0;
    do
    :: n < N * W -> run warp(n / W, n % W); n++
    :: else -> break
    od
  }
}
