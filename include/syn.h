/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What xdp_ratelimit tells xdp_syncookie about the packet that it hands over. Both programs are loaded with one map. */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct syn_order);
} syn_order SEC(".maps");

static __always_inline struct syn_order *order_at_hand(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&syn_order, &zero);
}

/* Whether a packet opens a connection, and does nothing else: what a listener answers. */
static __always_inline bool is_syn(__u32 tcp_flags)
{
	enum { FIN = 1, SYN = 2, RST = 4, ACK = 16 };

	return (tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK)) == TCP_SYN;
}
