/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The arithmetic of rate limits. A bucket is one word, with sliding windows two, and all CPUs share it. From the word,
 * the time, what the packet costs and the limit each algorithm makes the next word, which the caller puts in place by
 * one compare-and-swap. The next word is the same one exactly when the packet is over the limit: what is dropped is
 * not written, and what passes always changes the word. Nothing here loops, or reads memory but the limit.
 *
 * Units: a packet costs 1, or the bits of its frame, at most 8 * 65535. A limit is one of 1 to 10^9 packets a second
 * or of 1000 to 10^12 - 1 bits. A packet that costs more than the burst, or more than a whole window, never passes.
 *
 * Token and leaky bucket: time is in 2^-16 ns and goes round after 78 hours, so a difference is signed. A packet takes
 * cost * scale >> shift of it, where scale is 2^shift seconds / rate, rounded down, with the largest shift that keeps
 * cost * scale below 2^63:
 *
 *	rate			scale is below		time of a packet
 *	1 packet/s		2^63, shift 17		1 s = 2^45.9
 *	10^9 packets/s		2^63, shift 46		2^16, exactly
 *	1000 bits/s		2^44, shift 8		524 s for the largest frame, below 2^55
 *	10^12 - 1 bits/s	2^44, shift 37		65.5 a bit, 2^15 for a frame of 64 bytes
 *
 * All is rounded down, so a burst at once and packets at the rate pass as they should. A packet takes less than it
 * should by up to 2^-16 ns, and for bits by 2^-43 of its time. So the rate may come out higher: by 15 in a million at
 * 10^9 packets a second, by 30 at 10^12 bits in frames of 64 bytes, and at lower rates in proportion less. Depth is
 * below 2^62, the time of a packet below 2^55; no sum of them reaches 2^63.
 *
 * The word is a moment, not a number of tokens. So a limit may change under a live bucket and counts from the next
 * packet on: what the bucket lacks is worth the same time as before. Where that is more than the new limit's depth, or
 * the clock went back, the bucket is emptier than empty and would be shut for longer than its burst takes. Then one
 * packet passes, and leaves it just empty. It has to be out by more than BUCKET_STALL: two CPUs do not read the clock
 * at the same moment, and one may stop between its reading and its swap. By less it is an empty bucket, nothing else.
 * A CPU that stops for longer looks like a clock that went back; what it gives away is what the rate brings in that
 * time, at most a burst.
 *
 * A bucket may rest for 39 hours. Then the sign of the difference turns: it passes one packet and goes on as one that
 * was empty. The caller forgets buckets long before.
 *
 * Windows: time is in the kernel's ticks, which never go back. Windows are a second long, as the limit's rate, and
 * begin with the bucket, in its tick `start`: a second that is not aligned to any clock's seconds sees the rate too. A
 * word is the low 24 bits of its window's number, then 40 bits of units, which a rate below 2^40 never fills; a new
 * one is 0. The numbers go round after 194 days. Nothing is rounded.
 *
 * SYN cookies limit nobody here: they count SYNs by the same windows, and the count opens and shuts a gate.
 */
#pragma once
#include "kernel.h"
#include "abi.h"

/* Like bpf_helpers.h, which is not for the host, where tests/buckets.rs runs this. */
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

enum bucket_word {
	BUCKET_STALL = 42,	/* 2^42 * 2^-16 ns = 67 ms: more than a tick, and than a CPU is usually stopped for */
	WINDOW_UNITS = 40,	/* bits of a window's units */
};

/*
 * Both buckets: `until` is when the bucket will be as it was made, if no packet comes. That is `wait` from now, and as
 * much of the depth is used; a packet passes if the rest has room for its time.
 */
static __always_inline __u64 bucket_after(__u64 until, __u64 now, __u64 cost, const struct rl_limit *limit)
{
	__s64 depth = limit->depth, time = cost * limit->scale >> limit->shift;
	__s64 wait = until - now, room = depth - time;

	if (wait > depth + (1LL << BUCKET_STALL))
		wait = room; /* just empty after this packet; room is negative when it can never pass */
	if (wait < 0)
		wait = 0;
	return wait <= room ? now + wait + time : until;
}

/*
 * A bucket of tokens: a burst of them when it is full, and the rate brings more. A packet passes if it finds as many
 * as it costs. The word is when the bucket will be full again, so a new one has the word `now`: what is lacking is the
 * time until then. (In the words of ITU-T I.371 this is the GCRA, the word is its theoretical arrival time, and the
 * tolerance is the depth less the packet's time.)
 */
static __always_inline __u64 token_bucket(__u64 bucket, __u64 now, __u64 cost, const struct rl_limit *limit)
{
	return bucket_after(bucket, now, cost, limit);
}

/*
 * The mirror image: each packet pours in what it costs, the rate drains it. A packet passes if it fits: level + cost
 * <= burst. The word is when the bucket will have run dry, so a new one has the word `now`: the level is the time
 * until then. As the level is what the other bucket lacks, the two pass the same packets; I.371 has the GCRA in both
 * forms and says so too. No packet waits here, this bucket is a meter and not a queue.
 */
static __always_inline __u64 leaky_bucket(__u64 bucket, __u64 now, __u64 cost, const struct rl_limit *limit)
{
	return bucket_after(bucket, now, cost, limit);
}

/* A moment among the windows of a bucket. */
struct window {
	__u64 number;
	__u64 elapsed;		/* ticks of it that are over */
};

/* A CPU that read the clock just before another one made the bucket is in its first tick. */
static __always_inline struct window window_at(__u64 now, __u64 start, const struct rl_limit *limit)
{
	__u64 ticks = (__s64)(now - start) < 0 ? 0 : now - start;
	__u64 number = ticks / limit->window;

	return (struct window){ number, ticks - number * limit->window };
}

static __always_inline bool is_of_window(__u64 word, __u64 number)
{
	return !((word ^ number << WINDOW_UNITS) >> WINDOW_UNITS);
}

/* What passed in a window. Nothing, if the word is of another one. */
static __always_inline __u64 window_units(__u64 word, __u64 number)
{
	return is_of_window(word, number) ? word ^ number << WINDOW_UNITS : 0;
}

/*
 * At most per_window units from each window's begin to its end; across the seam of two it may be twice as many. A word
 * of the next window is from a CPU whose clock is a tick ahead: it must not be lost, so the packet counts there.
 */
static __always_inline __u64 fixed_window(__u64 word, struct window at, __u64 cost, const struct rl_limit *limit)
{
	__u64 number = at.number + is_of_window(word, at.number + 1);
	__u64 units = window_units(word, number) + cost;

	return units <= limit->per_window ? number << WINDOW_UNITS | units : word;
}

/* Which of a bucket's two words is the window's; the other one is that of the window before. */
static __always_inline __u32 window_slot(struct window at)
{
	return at.number & 1;
}

/*
 * At most per_window units in the second that ends now, as if what passed in the window before had been spread over
 * it: before * (window - elapsed) / window + units <= per_window. Multiplied by window, so that nothing is rounded:
 * with units below 2^40, cost below 2^20 and window up to 2^20 a product is below 2^61, and a sum of two below 2^62.
 */
static __always_inline __u64 sliding_window(__u64 word, __u64 before, struct window at, __u64 cost,
					    const struct rl_limit *limit)
{
	__u64 units = window_units(word, at.number) + cost;
	__u64 older = window_units(before, at.number - 1) * (limit->window - at.elapsed);

	return older + units * limit->window <= limit->per_window * limit->window ?
		       at.number << WINDOW_UNITS | units : word;
}

/*
 * Whether SYNs are answered with cookies, by those of a window so far, this one included: beyond the threshold, and from
 * then on until a whole window has seen no more than half of it. `open` is the window with which that ends, or was
 * shut; never a later one than two from now. A threshold of 0 is always exceeded.
 */
static __always_inline bool syn_gate(__u64 units, __u64 number, __u32 threshold, __u64 *open)
{
	bool is_open = number < *open && *open - number <= 2;

	if (units > (is_open ? threshold / 2 : threshold))
		*open = number + 2;
	return is_open || units > threshold;
}
