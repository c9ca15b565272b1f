/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The buckets of a host, by rule and source: one table that all CPUs share, so that a limit is the host's and not that
 * many times a CPU's. A bucket stands in one of two eight-way sets, two to a cache line; its words change by
 * compare-and-swap, which costs no more than taking a spin lock and cannot be held by anybody. What few packets need of it
 * is its back, in a table of its own.
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

/* The agent makes room for all sets, and a back for each bucket, before it loads the program. */
struct rl_set buckets[1] SEC(".bss.buckets");
struct rl_back backs[1] SEC(".bss.backs");

/* By slot of the rule. */
struct rl_common common[FW_SLOTS] SEC(".bss.common");

enum {
	RL_CLAIMED = 1,		/* id of a bucket that is being made: no rule's, whose instance stands above */
	RL_INSTANCE_SHIFT = 40, /* of an id: below are ports and protocol */
	RL_BLOCKED_BIT = 31,	/* of seen */
	RL_FIRST = RL_WAYS - 2,	/* buckets in a set before a newcomer looks at the other one */
	RL_TRIES = 16,		/* of a compare-and-swap */
};

/* Whiles after which a source is known, and for which it may then be silent: 2 and 60 seconds. Set by the agent. */
const volatile __u32 rl_known_after = 1, rl_known_for = 1;

/* What a packet is charged to. */
struct charge {
	struct rl_bucket *bucket;
	struct rl_back *back;
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
static __always_inline bool is_silent(const struct rl_bucket *bucket, const struct rl_back *back, __u64 tick)
{
	__u32 seen = *(volatile const __u32 *)&bucket->seen;
	__u32 silent = whiles_since(seen, while_of(tick)), hold = 1U << (seen >> RL_WHILE_BITS & 31);
	__u32 lived = whiles_since(while_of(bucket->start), seen);

	if (silent > ~0U >> 9) /* another CPU has just used it, and its clock is ahead of what was read here */
		return false;
	if (seen >> RL_BLOCKED_BIT && (__s32)(*(volatile const __u32 *)&back->blocked_until - (__u32)tick) > 0)
		return false; /* who keeps still does not get out earlier */
	return silent > hold && (lived < rl_known_after || silent > rl_known_for);
}

/* The second product is for sources that count up: some secret numbers alone would put those into few sets. */
static __always_inline __u64 hash_of(const struct rl_key *of, bool wide)
{
	__u64 hash = of->id * rl_secret[0] + of->word[0] * rl_secret[1];

	if (wide)
		hash += of->word[1] * rl_secret[2] + of->word[2] * rl_secret[3] + of->word[3] * rl_secret[4];
	hash ^= hash >> 32;
	return hash * 0xd6e8feb86659fd93ULL;
}

/* 0 if a bucket is that of a key, as far as its front tells. */
static __always_inline __u64 other_bucket(const struct rl_bucket *bucket, const struct rl_key *of)
{
	return (bucket->id ^ of->id) | (bucket->key ^ of->word[0]);
}

static __always_inline __u64 other_back(const struct rl_back *back, const struct rl_key *of)
{
	return (back->key[0] ^ of->word[1]) | (back->key[1] ^ of->word[2]) | (back->key[2] ^ of->word[3]);
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

static __always_inline struct rl_back *back_at(__u64 place, __u64 way)
{
	struct rl_back *all = backs;

	OPAQUE(all);
	return all + (place * RL_WAYS + way);
}

/* The bucket of a key at a way, or false. */
static __always_inline bool is_at(const struct rl_key *of, bool wide, __u64 place, __u64 way, struct charge *charge)
{
	struct rl_bucket *bucket = &set_at(place)->way[way];

	if (other_bucket(bucket, of) || (wide && other_back(back_at(place, way), of)))
		return false;
	charge->bucket = bucket;
	charge->back = back_at(place, way);
	charge->is_common = false;
	return true;
}

/* The bucket of a key in a set, or false. */
static __always_inline bool find_in_set(const struct rl_key *of, bool wide, __u64 place, __u64 hash,
					struct charge *charge)
{
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < RL_WAYS; i++)
		if (is_at(of, wide, place, bucket_way(hash, i), charge))
			return true;
	return false;
}

/* In one of the two sets that it may stand in. */
static __always_inline bool find_bucket(const struct rl_key *of, bool wide, __u64 hash, struct charge *charge)
{
	__u64 place = set_of(hash);

	return find_in_set(of, wide, place, hash, charge) || find_in_set(of, wide, other_set_of(hash), hash, charge);
}

/*
 * The same for a narrow key. Which of the first two ways it is, in one cache line, nobody can foresee: so that takes no
 * branch.
 */
static __always_inline bool find_narrow_bucket(const struct rl_key *of, struct charge *charge)
{
	__u64 hash = hash_of(of, false), place = set_of(hash), way = bucket_way(hash, 0), differs;

	differs = set_at(place)->way[way ^ 1].key ^ of->word[0];
	differs |= -differs;
	OPAQUE(differs);
	way ^= ~differs >> 63;
	OPAQUE(way); /* as in bucket_way() */
	way &= RL_WAYS - 1;
	return is_at(of, false, place, way, charge) || find_bucket(of, false, hash, charge);
}

/* Makes a bucket in a set, if its way is free, or with `silent` if what is there is silent. */
static __always_inline bool make_in_set(const struct rl_key *of, __u64 place, __u64 hash, __u64 tick, __u64 word,
					__u32 hold, bool silent)
{
	struct rl_set *set = set_at(place);

#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < RL_WAYS; i++) {
		__u64 way = bucket_way(hash, i);
		struct rl_bucket *bucket = &set->way[way];
		__u64 id = *(volatile __u64 *)&bucket->id;
		struct rl_back *back = back_at(place, way);

		if (id == RL_CLAIMED || (silent ? !is_silent(bucket, back, tick) : id != 0))
			continue;
		if (__sync_val_compare_and_swap(&bucket->id, id, RL_CLAIMED) != id)
			continue;
		__builtin_memset(back, 0, sizeof(*back));
		back->key[0] = of->word[1];
		back->key[1] = of->word[2];
		back->key[2] = of->word[3];
		bucket->key = of->word[0];
		bucket->word = word;
		bucket->start = tick;
		bucket->seen = while_of(tick) | (hold & 31) << RL_WHILE_BITS;
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
 * Makes a bucket with its first word where there is room: 0 when there is none, 1 when there was, 2 when a silent one was
 * taken. The first set is cheaper to find, the emptier one lets the table become fuller: so the first one while it has
 * RL_FIRST buckets at most. A function of its own, verified once.
 */
__noinline int make_bucket(const struct rl_key *of, __u64 hash, __u64 tick, __u64 word, __u32 hold)
{
	__u64 first = set_of(hash), second = other_set_of(hash), swap;
	__u32 used = used_in_set(first);

	if (!of)
		return 0;
	if (used > RL_FIRST && used_in_set(second) < used) {
		swap = first;
		first = second;
		second = swap;
	}
	if (make_in_set(of, first, hash, tick, word, hold, false) || make_in_set(of, second, hash, tick, word, hold, false))
		return 1;
	return make_in_set(of, first, hash, tick, word, hold, true) ||
			       make_in_set(of, second, hash, tick, word, hold, true) ?
		       2 :
		       0;
}

/*
 * Notes that a bucket is in use, whose seen is known. Where another CPU may block it, by a swap, which is lost when that
 * one or another one that notes the same comes first.
 */
static __always_inline void touch_bucket(struct rl_bucket *bucket, __u32 seen, bool may_block, __u64 tick)
{
	__u32 now = (seen & ~((1U << RL_WHILE_BITS) - 1)) | while_of(tick);

	if (!may_block)
		*(volatile __u32 *)&bucket->seen = now;
	else if (seen != now)
		__sync_val_compare_and_swap(&bucket->seen, seen, now);
}

/* Ticks of a bucket's life. A CPU that read the clock just before another one made it is in its first tick. */
static __always_inline __u32 ticks_since(__u32 start, __u32 tick)
{
	return tick - start > ~15U ? 0 : tick - start;
}

/* The word that a packet changes and what it becomes; the same when the packet is over the limit. */
static __always_inline __u64 next_word(const struct charge *charge, const struct rl_rule *rule, __u64 tick, __u64 time,
				       __u64 cost, __u64 **word, __u64 *old)
{
	const struct rl_limit *limit = &rule->limit;
	struct window at;
	__u64 *before;

	*word = &charge->bucket->word;
	*old = *(volatile __u64 *)*word;
	if (rule->algorithm == RL_TOKEN_BUCKET)
		return token_bucket(*old, time, cost, limit);
	if (rule->algorithm == RL_LEAKY_BUCKET)
		return leaky_bucket(*old, time, cost, limit);
	at = window_at(ticks_since(charge->bucket->start, tick), 0, limit);
	if (rule->algorithm == RL_FIXED_WINDOW)
		return fixed_window(*old, at, cost, limit);
	before = &charge->back->word;
	if (window_slot(at)) {
		before = *word;
		*word = &charge->back->word;
		*old = *(volatile __u64 *)*word;
	}
	return sliding_window(*old, *(volatile __u64 *)before, at, cost, limit);
}

enum taken { TAKEN, OVER_LIMIT, CONTENDED };

/* Charges a packet to a bucket. */
static __always_inline enum taken take(const struct charge *charge, const struct rl_rule *rule, __u64 tick, __u64 time,
				       __u64 cost)
{
#pragma clang loop unroll(disable)
	for (int i = 0; i < RL_TRIES; i++) {
		__u64 *word, old, next = next_word(charge, rule, tick, time, cost, &word, &old);

		if (next == old)
			return OVER_LIMIT;
		if (__sync_val_compare_and_swap(word, old, next) == old)
			return TAKEN;
	}
	return CONTENDED;
}
