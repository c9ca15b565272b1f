/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Which packets are looked at when not all are: each one by chance, or whole flows, both directions alike, by a hash that
 * nobody can foresee. Fragments have no ports and are chosen by their addresses alone. What was left out is counted by
 * tc_ids; blocks hold for it all the same.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "flow_budget.h"

/* enum ids_sampling, and the part that is chosen in units of 2^-32: 2^32 is all. */
const volatile __u32 sampling;
const volatile __u64 sampling_rate;

/* Keyed hash of a flow. */
static __always_inline __u32 flow_hash_of(const struct seen *p)
{
	__u32 ports = p->word >> IDS_KIND < IDS_OTHER ? (__u32)p->word : 0;

	return both_hash(end_hash(p->src, (ports & 0xffff) + 1), end_hash(p->dst, (ports >> 16) + 1)) + (p->word >> IDS_KIND);
}

static __always_inline bool is_sampled_out(const struct seen *p)
{
	if (sampling == IDS_SAMPLE_RANDOM)
		return bpf_get_prandom_u32() >= sampling_rate;
	return sampling == IDS_SAMPLE_HASH && flow_hash_of(p) >= sampling_rate;
}
