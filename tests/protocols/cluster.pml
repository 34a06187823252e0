/* The cluster tier's forward exchange (csrc/cuda/persistent/kernel.cuh, struct Cluster) for spin: N CTAs push every
 * publication into all peers' shared memory, themselves included, and each counts the bytes in at a barrier a buffer.
 *
 * A tile of publication i holds i+1 here. A push arrives in two steps, each at any time and in any order with others:
 * its data, then its count. A warp's loads are done before what it pushes leaves: the value depends on them. (PTX does
 * not say that an asynchronous store comes after its thread's earlier loads: FAULT READS_LATE is what would happen.)
 *
 * SPLIT: 0, each of a CTA's two warps has a tile of its own and they meet no barrier; 1, they share one, which warp 0
 * finishes behind the barrier of the sums. FAULT is one of the mistakes below. With LOSE one push may get lost: then
 * some wait times out, when nothing else can happen. Checked: a warp that has not given up reads the publication it
 * waits for, or NaN; no barrier is armed twice or counts far from its mark; nobody gives up unless a push was lost;
 * nothing is on its way when the CTAs exit; and every warp reaches its end.
 */
#define ONE_BUFFER 1       /* both publications lie in one */
#define STORES_OWN 2       /* a CTA stores its own tiles and pushes them to the others */
#define FEWER_BYTES 3      /* fewer bytes expected than come */
#define MORE_BYTES 4       /* more bytes expected than come */
#define WRONG_PARITY 5     /* the phase's parity is the publication's */
#define NO_BEGIN 6         /* pushes into CTAs that have not begun */
#define ARMED_AFTER 7      /* a barrier expects bytes after the last publication */
#define OTHER_BARRIER 8    /* the other buffer's barrier counts */
#define ONE_WAITS 9        /* one warp of a CTA waits for all */
#define ONE_SILENT 10      /* a warp reads and pushes nothing (padded tiles are not pushed) */
#define READS_LATE 11      /* a load is done after the push */
#define PUSHES_ON 12       /* who gave up pushes on */
#define ARMS_ON 13         /* and arms on */
#define NO_TIME 14         /* and does not wait for what is on its way */

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
#ifndef SPLIT
#define SPLIT 0
#endif
#ifndef N
#define N 2  /* CTAs */
#endif
#define W 2
#if SPLIT || FAULT == ONE_SILENT
#define FINISHING 1  /* warps of a CTA that push */
#else
#define FINISHING W
#endif
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
#if FAULT == STORES_OWN
#define EXPECTED (TILES - FINISHING)
#elif FAULT == FEWER_BYTES
#define EXPECTED (TILES - 1)
#elif FAULT == MORE_BYTES
#define EXPECTED (TILES + 1)
#else
#define EXPECTED TILES
#endif
#define MOST 6  /* tiles at most: 3 CTAs of 2 */
#define PLACE(cta, i, tile) ((cta) * 2 * MOST + BUFFER(i) * MOST + (tile))
#define PUSH(cta, i, tile) ((cta) * 2 * MOST + ((i) & 1) * MOST + (tile))

byte tile_of[N * 2 * MOST];
byte stage[N * 2 * MOST];  /* of a push: 0 none, 1 on its way, 2 its data is there */
byte value[N * 2 * MOST];
byte under_way;
bool began[N];
bool armed[N * 2];
short missing[N * 2];
bit over[N * 2];  /* the parity of the phases that are over: the next one's */
byte part[N * W];
byte arrived[N];
bit turn[N];
byte at_begin, at_end;
bool told[N], lost;

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

inline complete(at) {
  assert(missing[at] <= 2 * (TILES + 1) && missing[at] >= -2 * (TILES + 1));
  if
  :: armed[at] && missing[at] == 0 -> armed[at] = false; over[at] = 1 - over[at]
  :: else
  fi
}

inline arm(i) {
  atomic {
    assert(!armed[c * 2 + ((i) & 1)]);
    armed[c * 2 + ((i) & 1)] = true;
    missing[c * 2 + ((i) & 1)] = missing[c * 2 + ((i) & 1)] + EXPECTED;
    complete(c * 2 + ((i) & 1))
  }
}

inline push(i, what) {
  k = 0;
  do
  :: k < N ->
    atomic {
#if FAULT == STORES_OWN
      if
      :: k == c -> tile_of[PLACE(c, i, c * FINISHING + w)] = what
      :: else ->
#endif
      assert(began[k]);
      assert(stage[PUSH(k, i, c * FINISHING + w)] == 0);
      stage[PUSH(k, i, c * FINISHING + w)] = 1;
      value[PUSH(k, i, c * FINISHING + w)] = what;
      under_way++;
#if FAULT == STORES_OWN
      fi;
#endif
      k++
    }
  :: else -> break
  od
}

proctype wire(byte cta; byte b; byte tile) {
end:
  do
  :: atomic { stage[PUSH(cta, b, tile)] == 1 ->
      tile_of[PLACE(cta, b, tile)] = value[PUSH(cta, b, tile)]; stage[PUSH(cta, b, tile)] = 2 }
#if LOSE
  :: atomic { stage[PUSH(cta, b, tile)] == 1 && !lost -> lost = true; stage[PUSH(cta, b, tile)] = 0; under_way-- }
#endif
  :: atomic { stage[PUSH(cta, b, tile)] == 2 ->
      stage[PUSH(cta, b, tile)] = 0;
      under_way--;
#if FAULT == OTHER_BARRIER
      missing[cta * 2 + 1 - b]--;
      complete(cta * 2 + 1 - b)
#else
      missing[cta * 2 + b]--;
      complete(cta * 2 + b)
#endif
    }
  od
}

/* Of all tiles of publication i, into worst: i+1 if they are what they should be, or NaN. */
inline load_all(i) {
  k = 0; worst = i + 1;
  do
  :: k < TILES ->
    atomic {
      v = tile_of[PLACE(c, i, k)];
      assert(bad || v == i + 1 || v == NAN);
      if
      :: bad || v == NAN -> worst = NAN
      :: else
      fi;
      v = 0; k++
    }
  :: else -> break
  od;
  k = 0
}

proctype warp(byte c; byte w) {
  byte i, k, v, worst;
  bit mine;
  bool bad;
  if
  :: w == 0 -> began[c] = true; arm(0); arm(1)
  :: else
  fi;
#if FAULT != NO_BEGIN
  at_begin++;
  at_begin == N * W;
#endif
  if
  :: w < FINISHING -> push(0, 1)
  :: else
  fi;
  do
  :: i < T ->
    if
    :: !bad ->
      if
#if FAULT == ONE_WAITS
      :: w != 0
#endif
#if FAULT == WRONG_PARITY
      :: over[c * 2 + (i & 1)] != (i & 1)
#else
      :: over[c * 2 + (i & 1)] != (i >> 1 & 1)
#endif
      :: atomic { told[c] -> bad = true }
      :: atomic { TIME_OUT ->
          assert(lost || HASTY);
          bad = true; k = 0;
          do
          :: k < N -> told[k] = true; k++
          :: else -> k = 0; break
          od
        }
      fi
    :: else
    fi;
    if
#if FAULT == ARMED_AFTER
    :: w == 0 && !bad -> arm(i + 2)
#elif FAULT == ARMS_ON
    :: w == 0 && i + 2 < T -> arm(i + 2)
#else
    :: w == 0 && !bad && i + 2 < T -> arm(i + 2)
#endif
    :: else
    fi;
#if FAULT == READS_LATE
    if
    :: w < FINISHING && i + 1 < T && !bad -> push(i + 1, i + 2)
    :: else
    fi;
    load_all(i);
#else
    load_all(i);
#if SPLIT
    part[c * W + w] = worst;
    sync();
    if
    :: w == 0 ->
      do
      :: k < W ->
        atomic {
          assert(part[c * W + k] == i + 1 || part[c * W + k] == NAN);
          if
          :: part[c * W + k] == NAN -> worst = NAN
          :: else
          fi;
          k++
        }
      :: else -> k = 0; break
      od
    :: else
    fi;
#endif
    if
#if FAULT == PUSHES_ON
    :: w < FINISHING && i + 1 < T -> push(i + 1, (worst == NAN -> NAN : i + 2))
#else
    :: w < FINISHING && i + 1 < T && !bad -> push(i + 1, (worst == NAN -> NAN : i + 2))
#endif
    :: else
    fi;
#endif
    i++
  :: else -> break
  od;
#if FAULT != NO_TIME
  if
  :: told[c] -> under_way == 0  /* time enough to arrive */
  :: else
  fi;
#endif
  at_end++;
  at_end == N * W;
  assert(under_way == 0);
  assert(lost || HASTY || (!armed[c * 2] && !armed[c * 2 + 1] && missing[c * 2] == 0 && missing[c * 2 + 1] == 0))
}

init {
  byte n;
  atomic {
    do
    :: n < N * 2 * TILES -> run wire(n / (2 * TILES), n / TILES % 2, n % TILES); n++
    :: else -> break
    od;
    n = 0;
    do
    :: n < N * W -> run warp(n / W, n % W); n++
    :: else -> break
    od
  }
}
