/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* include/buckets.h as a library of the host; tests/buckets.rs compiles and loads it. */
#include "buckets.h"

__u64 native_token_bucket(__u64 bucket, __u64 now, __u64 cost, const struct rl_limit *limit)
{
	return token_bucket(bucket, now, cost, limit);
}

__u64 native_leaky_bucket(__u64 bucket, __u64 now, __u64 cost, const struct rl_limit *limit)
{
	return leaky_bucket(bucket, now, cost, limit);
}

__u64 native_fixed_window(__u64 word, __u64 now, __u64 start, __u64 cost, const struct rl_limit *limit)
{
	return fixed_window(word, window_at(now, start, limit), cost, limit);
}

/* Puts the next word in place itself; 1 when the packet passes. */
__u64 native_sliding_window(__u64 *words, __u64 now, __u64 start, __u64 cost, const struct rl_limit *limit)
{
	struct window at = window_at(now, start, limit);
	__u32 slot = window_slot(at);
	__u64 next = sliding_window(words[slot], words[slot ^ 1], at, cost, limit), passed = next != words[slot];

	words[slot] = next;
	return passed;
}

__u64 native_syn_gate(__u64 units, __u64 number, __u32 threshold, __u64 *open)
{
	return syn_gate(units, number, threshold, open);
}
