/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The XDP programs that run one behind the other. Each judges for itself and then goes on to the next one that is there;
 * behind the last one the packet passes. The agent makes the map, fills it before anything is attached, and gives it to
 * every program of the chain.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, CHAIN_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} xdp_next SEC(".maps");

/* Set by the agent when xdp_steer is in the chain: then every packet that passes the others goes there. */
const volatile __u8 steers;

/* Runs a program of the chain. Returns only when there is none. */
static __always_inline void chain_to(struct xdp_md *ctx, __u32 slot)
{
	bpf_tail_call(ctx, &xdp_next, slot);
}
