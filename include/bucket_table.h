/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The buckets of a host, by rule and source: one table that all CPUs share, so that a limit is the host's and not that
 * many times a CPU's. A bucket is a cache line of one of two four-way sets; its words change by compare-and-swap, which
 * costs no more than taking a spin lock and cannot be held by anybody.
 *
 * Room is never taken from a source that is at work. A newcomer gets a free bucket, or one that was silent for so long
 * that nothing is lost with it: longer than its rule's burst takes, and if its source has been here for a while, a minute.
 * When there is none, as under a flood from invented sources, the packet goes by its rule's common bucket. So such a flood
 * fills the room that is free, is limited as a whole beyond that, and neither evicts nor slows down who is known.
 *
 * Two CPUs that see a source's first two packets at the same moment may make two buckets; the second one is never looked
 * at again and is soon silent.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"
#include "buckets.h"

/* Sets, a power of two, and 64 less its logarithm. */
const volatile __u64 rl_sets = 1;
const volatile __u32 rl_set_shift = 63;

/* Odd numbers drawn at each load: nobody can aim at a set. */
const volatile __u64 rl_secret[5];

/* The agent makes room for all sets, and four tales for each, before it loads the program. */
struct rl_set buckets[1] SEC(".bss.buckets");
struct rl_tale tales[1] SEC(".bss.tales");

/* By slot of the rule. */
struct rl_common common[FW_SLOTS] SEC(".bss.common");

enum {
	RL_CLAIMED = 1,		/* id of a bucket that is being made: no rule's, whose instance stands above */
	RL_INSTANCE_SHIFT = 40, /* of an id: below are ports and protocol */
	RL_BLOCKED_BIT = 31,	/* of seen */
	RL_TRIES = 16,		/* of a compare-and-swap */
};

/* Whiles after which a source is known, and for which it may then be silent: 2 and 60 seconds. Set by the agent. */
const volatile __u32 rl_known_after = 1, rl_known_for = 1;

/* What a packet is charged to. */
struct charge {
	struct rl_bucket *bucket;
	struct rl_tale *tale;
	bool is_common;
};

static __always_inline __u32 while_of(__u64 tick)
{
	return tick >> FW_WHILE_SHIFT & ((1 << RL_WHILE_BITS) - 1);
}

/* Whiles since another one; they come round after three days, which no bucket is silent for. */
static __always_inline __u32 whiles_since(__u32 then, __u32 now)
{
	return (now - then) & ((1 << RL_WHILE_BITS) - 1);
}

/* Whether a bucket may be forgotten. */
static __always_inline bool is_silent(const struct rl_bucket *bucket, const struct rl_tale *tale, __u64 tick)
{
	__u32 seen = *(volatile const __u32 *)&bucket->seen;
	__u32 silent = whiles_since(seen, while_of(tick)), hold = 1U << (seen >> RL_WHILE_BITS & 31);
	__u32 lived = whiles_since(while_of(bucket->start), seen);

	if (silent > ~0U >> 9) /* another CPU has just used it, and its clock is ahead of what was read here */
		return false;
	if (seen >> RL_BLOCKED_BIT && (__s32)(*(volatile const __u32 *)&tale->blocked_until - (__u32)tick) > 0)
		return false; /* who keeps still does not get out earlier */
	return silent > hold && (lived < rl_known_after || silent > rl_known_for);
}

/* The second product is for sources that count up: some secret numbers alone would put those into few sets. */
static __always_inline __u64 hash_of(const struct rl_bucket *of, bool wide)
{
	__u64 hash = of->id * rl_secret[0] + of->key[0] * rl_secret[1] + of->key[1] * rl_secret[2];

	if (wide)
		hash += of->key[2] * rl_secret[3] + of->key[3] * rl_secret[4];
	hash ^= hash >> 32;
	return hash * 0xd6e8feb86659fd93ULL;
}

/* A rule's buckets are all wide or all narrow: those of narrow ones have nothing in the second half of the key. */
static __always_inline __u64 other_bucket(const struct rl_bucket *one, const struct rl_bucket *other, bool wide)
{
	__u64 differs = (one->id ^ other->id) | (one->key[0] ^ other->key[0]) | (one->key[1] ^ other->key[1]);

	if (wide)
		differs |= (one->key[2] ^ other->key[2]) | (one->key[3] ^ other->key[3]);
	return differs;
}

/* The i-th way that a bucket takes if it can. */
static __always_inline __u64 bucket_way(__u64 hash, __u32 i)
{
	__u64 at = hash >> 16 ^ i;

	OPAQUE(at); /* clang knows that it is small, the verifier has to see it */
	return at & (RL_WAYS - 1);
}

static __always_inline __u64 set_of(__u64 hash)
{
	return hash >> (rl_set_shift & 63) & (rl_sets - 1);
}

/* The other set in which a bucket may stand. Which that is has nothing to do with the first one, so no two sets are a pair. */
static __always_inline __u64 other_set_of(__u64 hash)
{
	return (set_of(hash) ^ (hash >> 18 | 1)) & (rl_sets - 1);
}

static __always_inline struct rl_set *set_at(__u64 place)
{
	struct rl_set *sets = buckets;

	OPAQUE(sets); /* clang believes that there is one */
	return sets + place;
}

static __always_inline struct rl_tale *tale_at(__u64 place, __u64 way)
{
	struct rl_tale *all = tales;

	OPAQUE(all);
	return all + (place * RL_WAYS + way);
}

/* The bucket with the id and key of `of` in a set, or false. */
static __always_inline bool find_in_set(const struct rl_bucket *of, bool wide, __u64 place, __u64 hash,
					struct charge *charge)
{
	struct rl_set *set = set_at(place);

#pragma clang loop unroll(full)
	for (__u32 i = 0; i < RL_WAYS; i++) {
		__u64 way = bucket_way(hash, i);
		struct rl_bucket *bucket = &set->way[way];

		if (other_bucket(bucket, of, wide))
			continue;
		charge->bucket = bucket;
		charge->tale = tale_at(place, way);
		charge->is_common = false;
		return true;
	}
	return false;
}

/* In one of the two sets that it may stand in. */
static __always_inline bool find_bucket(const struct rl_bucket *of, bool wide, __u64 hash, struct charge *charge)
{
	__u64 place = set_of(hash);

	return find_in_set(of, wide, place, hash, charge) || find_in_set(of, wide, other_set_of(hash), hash, charge);
}

/* Makes a bucket in a set, if its way is free, or with `silent` if what is there is silent. */
static __always_inline bool make_in_set(const struct rl_bucket *of, __u64 place, __u64 hash, __u64 tick, bool silent)
{
	struct rl_set *set = set_at(place);

#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < RL_WAYS; i++) {
		__u64 way = bucket_way(hash, i);
		struct rl_bucket *bucket = &set->way[way];
		__u64 id = *(volatile __u64 *)&bucket->id;
		struct rl_tale *tale = tale_at(place, way);

		if (id == RL_CLAIMED || (silent ? !is_silent(bucket, tale, tick) : id != 0))
			continue;
		if (__sync_val_compare_and_swap(&bucket->id, id, RL_CLAIMED) != id)
			continue;
		__builtin_memset(tale, 0, sizeof(*tale));
		bucket->key[0] = of->key[0];
		bucket->key[1] = of->key[1];
		bucket->key[2] = of->key[2];
		bucket->key[3] = of->key[3];
		bucket->word[0] = of->word[0];
		bucket->word[1] = of->word[1];
		bucket->start = of->start;
		bucket->seen = of->seen;
		/* An exchange is a full barrier: who sees the id sees the rest. */
		__sync_lock_test_and_set(&bucket->id, of->id);
		return true;
	}
	return false;
}

/* Buckets in a set. */
static __always_inline __u32 used_in_set(__u64 place)
{
	struct rl_set *set = set_at(place);
	__u32 used = 0;

#pragma clang loop unroll(full)
	for (__u32 i = 0; i < RL_WAYS; i++)
		used += !!*(volatile __u64 *)&set->way[i].id;
	return used;
}

/*
 * Makes a bucket like `of`, words included, where there is room: 0 when there is none, 1 when there was, 2 when a silent
 * one was taken. The first set is cheaper to find, the emptier one lets the table become fuller: so the first one while
 * it is at most half full. A function of its own, verified once.
 */
__noinline int make_bucket(const struct rl_bucket *of, __u64 hash, __u64 tick)
{
	__u64 first = set_of(hash), second = other_set_of(hash), swap;
	__u32 used = used_in_set(first);

	if (!of)
		return 0;
	if (used > RL_WAYS / 2 && used_in_set(second) < used) {
		swap = first;
		first = second;
		second = swap;
	}
	if (make_in_set(of, first, hash, tick, false) || make_in_set(of, second, hash, tick, false))
		return 1;
	return make_in_set(of, first, hash, tick, true) || make_in_set(of, second, hash, tick, true) ? 2 : 0;
}

/* Notes that a bucket is in use. Lost when another CPU changes the word at the same time, which notes the same. */
static __always_inline void touch_bucket(struct rl_bucket *bucket, __u64 tick)
{
	__u32 seen = *(volatile __u32 *)&bucket->seen, now = while_of(tick);

	if ((seen ^ now) & ((1 << RL_WHILE_BITS) - 1))
		__sync_val_compare_and_swap(&bucket->seen, seen, (seen & ~((1U << RL_WHILE_BITS) - 1)) | now);
}

/* Ticks of a bucket's life. A CPU that read the clock just before another one made it is in its first tick. */
static __always_inline __u32 ticks_since(__u32 start, __u32 tick)
{
	return tick - start > ~15U ? 0 : tick - start;
}

/* The word that a packet changes and what it becomes; the same when the packet is over the limit. */
static __always_inline __u64 next_word(struct rl_bucket *bucket, const struct rl_rule *rule, __u64 tick, __u64 time,
				       __u64 cost, __u64 **word, __u64 *old)
{
	const struct rl_limit *limit = &rule->limit;
	struct window at;

	*word = &bucket->word[0];
	*old = *(volatile __u64 *)*word;
	if (rule->algorithm == RL_TOKEN_BUCKET)
		return token_bucket(*old, time, cost, limit);
	if (rule->algorithm == RL_LEAKY_BUCKET)
		return leaky_bucket(*old, time, cost, limit);
	at = window_at(ticks_since(bucket->start, tick), 0, limit);
	if (rule->algorithm == RL_FIXED_WINDOW)
		return fixed_window(*old, at, cost, limit);
	*word = &bucket->word[window_slot(at)];
	*old = *(volatile __u64 *)*word;
	return sliding_window(*old, *(volatile __u64 *)&bucket->word[!window_slot(at)], at, cost, limit);
}

enum taken { TAKEN, OVER_LIMIT, CONTENDED };

/* Charges a packet to a bucket. */
static __always_inline enum taken take(struct rl_bucket *bucket, const struct rl_rule *rule, __u64 tick, __u64 time,
				       __u64 cost)
{
#pragma clang loop unroll(disable)
	for (int i = 0; i < RL_TRIES; i++) {
		__u64 *word, old, next = next_word(bucket, rule, tick, time, cost, &word, &old);

		if (next == old)
			return OVER_LIMIT;
		if (__sync_val_compare_and_swap(word, old, next) == old)
			return TAKEN;
	}
	return CONTENDED;
}
