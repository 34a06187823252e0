/* The cluster tier's backward exchange (csrc/cuda/persistent/backward_scattered.cuh) for spin: a CTA keeps the gates'
 * gradient of its own units as its operand, and its warps push parts of the gradient of h into the slots that every
 * peer, itself included, has for each sender.
 *
 * N CTAs of N warps: warp 0 finishes (adds up a publication's parts, makes the next operand), and warp w multiplies
 * for the peer w places (and as many more as BEHIND says) behind its own CTA. Publication i holds i+1 here. Pushes arrive as in cluster.pml.
 *
 * FAULT is one of the mistakes below. With LOSE one push may get lost: then a wait times out, when nothing else can
 * happen. Checked: a warp whose CTA has not given up reads the publication it wants, in every slot and in the operand;
 * no barrier is armed twice or counts far from its mark; nobody gives up unless a push was lost; nothing is on its way
 * when the CTAs exit; and every warp reaches its end.
 */
#define ONE_SLOT_BUFFER 1     /* one buffer for the peers' parts */
#define ONE_OPERAND_BUFFER 2  /* one buffer for the gates' gradient */
#define STORES_OWN 3          /* a CTA stores its own part and pushes the others */
#define FEWER_BYTES 4         /* the sum does not wait for one of the peers */
#define MORE_BYTES 5          /* more bytes expected than come */
#define NO_BARRIER 6          /* the products do not wait for the gates' gradient */
#define AFTER_NEXT 7          /* the phase after next is waited for */
#define OTHER_BARRIER 8       /* the other buffer's barrier counts */
#define NO_WAIT 9             /* the parts are added up before they are there */
#define PUSHES_ON 10          /* a CTA that gave up pushes on */
#define NO_TIME 11            /* and does not wait for what is on its way */

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
#ifndef BEHIND
#define BEHIND 0
#endif
#ifndef T
#define T 4  /* publications */
#endif
#define NAN 255

#if FAULT == STORES_OWN || FAULT == FEWER_BYTES
#define EXPECTED (N - 1)
#elif FAULT == MORE_BYTES
#define EXPECTED (N + 1)
#else
#define EXPECTED N
#endif
#if FAULT == ONE_SLOT_BUFFER
#define SLOT(cta, i, sender) ((cta) * 2 * N + (sender))
#else
#define SLOT(cta, i, sender) ((cta) * 2 * N + ((i) & 1) * N + (sender))
#endif
#if FAULT == ONE_OPERAND_BUFFER
#define OPERAND(i) (c * 2)
#else
#define OPERAND(i) (c * 2 + ((i) & 1))
#endif
#define PUSH(cta, i, sender) ((cta) * 2 * N + ((i) & 1) * N + (sender))

byte operand[N * 2], slot[N * 2 * N];
byte stage[N * 2 * N], value[N * 2 * N];  /* of a push: 0 none, 1 on its way, 2 its data is there */
byte under_way;
bool armed[N * 2];
short missing[N * 2];
bit over[N * 2];
byte arrived[N];
bit turn[N];
byte at_begin, at_end;
bool told[N], lost;

inline sync() {
  atomic {
    arrived[c]++;
    if
    :: arrived[c] == N -> arrived[c] = 0; turn[c] = 1 - turn[c]
    :: else
    fi
  }
  turn[c] != mine;
  mine = 1 - mine
}

inline complete(at) {
  assert(missing[at] <= 2 * (N + 1) && missing[at] >= -2 * (N + 1));
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

proctype wire(byte cta; byte b; byte sender) {
end:
  do
  :: atomic { stage[PUSH(cta, b, sender)] == 1 ->
      slot[SLOT(cta, b, sender)] = value[PUSH(cta, b, sender)]; stage[PUSH(cta, b, sender)] = 2 }
#if LOSE
  :: atomic { stage[PUSH(cta, b, sender)] == 1 && !lost ->
      lost = true; stage[PUSH(cta, b, sender)] = 0; under_way-- }
#endif
  :: atomic { stage[PUSH(cta, b, sender)] == 2 ->
      stage[PUSH(cta, b, sender)] = 0;
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

/* The finishing warp: the parts of publication i-1. */
inline take() {
  if
  :: !bad ->
    if
#if FAULT == NO_WAIT
    :: true
#elif FAULT == AFTER_NEXT
    :: over[c * 2 + ((i - 1) & 1)] != ((i + 1) >> 1 & 1)
#else
    :: over[c * 2 + ((i - 1) & 1)] != ((i - 1) >> 1 & 1)
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
  :: !bad && i + 1 < T -> arm(i + 1)
  :: else
  fi;
  do
  :: k < N ->
    atomic {
      assert(bad || slot[SLOT(c, i - 1, k)] == i || slot[SLOT(c, i - 1, k)] == NAN);
      if
      :: bad || slot[SLOT(c, i - 1, k)] == NAN -> worst = NAN
      :: else
      fi;
      k++
    }
  :: else -> k = 0; break
  od
}

proctype warp(byte c; byte w) {
  byte i, k, peer, worst;
  bit mine;
  bool bad, quiet;
  peer = (c + w + BEHIND) % N;
  if
  :: w == 0 -> arm(0); arm(1)
  :: else
  fi;
  at_begin++;
  at_begin == N * N;
  do
  :: i < T ->
    worst = i + 1;
    if
    :: w == 0 ->
      if
      :: i > 0 -> take()
      :: else
      fi;
      operand[OPERAND(i)] = worst
    :: else
    fi;
#if FAULT != NO_BARRIER
    sync();
#endif
    quiet = told[c];
    atomic {
      worst = operand[OPERAND(i)];
      assert(worst == i + 1 || worst == NAN)
    }
    if
#if FAULT == PUSHES_ON
    :: true ->
#else
    :: !quiet ->
#endif
#if FAULT == STORES_OWN
      if
      :: peer == c -> slot[SLOT(c, i, c)] = worst
      :: else ->
#endif
      atomic {
        assert(stage[PUSH(peer, i, c)] == 0);
        stage[PUSH(peer, i, c)] = 1;
        value[PUSH(peer, i, c)] = worst;
        under_way++
      }
#if FAULT == STORES_OWN
      fi
#endif
    :: else
    fi;
    i++
  :: else -> break
  od;
  if
  :: w == 0 -> take()
  :: else
  fi;
#if FAULT != NO_TIME
  if
  :: told[c] -> under_way == 0  /* time enough to arrive */
  :: else
  fi;
#endif
  at_end++;
  at_end == N * N;
  assert(under_way == 0);
  assert(lost || HASTY || (!armed[c * 2] && !armed[c * 2 + 1] && missing[c * 2] == 0 && missing[c * 2 + 1] == 0))
}

init {
  byte n;
  atomic {
    do
    :: n < N * 2 * N -> run wire(n / (2 * N), n / N % 2, n % N); n++
    :: else -> break
    od;
    n = 0;
    do
    :: n < N * N -> run warp(n / N, n % N); n++
    :: else -> break
    od
  }
}
