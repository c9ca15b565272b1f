/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the agent has blocked: flows, and addresses. xdp_firewall drops it before rules and flow cache are asked,
 * tc_ids in both directions, so that a blocked flow cannot send either. The mode of the firewall has no say: who
 * blocks means it.
 *
 * What is never blocked: everything that is not IP (ARP, LLDP, LACP, EAPOL), neighbour discovery and the multicast
 * queries of switches, DHCP between this host and its server when the agent asks for that, and TCP between a guarded
 * port of this host and a network of the lock-out guard. These exceptions hold for flows as for addresses.
 *
 * A block of an address holds for source and destination, whatever the VLAN, for fragments, and for packets whose
 * transport header cannot be parsed. A block of a flow holds for both directions, within one VLAN, for what has its
 * ports: TCP, UDP, UDP-Lite, SCTP; later fragments follow, since without the first one they are worth nothing. Resets
 * of TCP that carry nothing may leave (tc_ids), so that the other end learns that the flow is over.
 *
 * One thread of the agent writes the tables; a full one is an error that it shows. Expiry is in seconds since boot.
 * Packets are not delayed by entries that have expired and are still there, but for the search.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"
#include "policy.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* both set by the agent */
	__type(key, struct block_flow);
	__type(value, struct block);
} blocked_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct block_address);
	__type(value, struct block);
} blocked_addrs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct block_policy);
} block_policy SEC(".maps");

/* The agent inspects, so there may be blocks. Else this program has none of the maps. */
const volatile __u8 has_blocks;

/* Whether anything is blocked: what every packet asks. */
static __always_inline bool blocks_anything(void)
{
	struct block_policy *policy;
	__u32 zero = 0;

	if (!has_blocks)
		return false;
	policy = bpf_map_lookup_elem(&block_policy, &zero);
	return policy && *(volatile __u64 *)&policy->flows;
}

/* How a packet is looked for. */
enum {
	BLOCK_EGRESS = 1,
	BLOCK_QUIETLY = 2,   /* it is a question: not counted */
	BLOCK_ADDRESSES = 4, /* blocks of flows do not hold for it */
};

static __always_inline bool is_in_force(struct block *block, __u32 how)
{
	if (!block || (block->until_s && bpf_ktime_get_boot_ns() / 1000000000 >= block->until_s))
		return false;
	if (!(how & BLOCK_QUIETLY))
		__sync_fetch_and_add(&block->packets, 1);
	return true;
}

static __always_inline bool is_address_blocked(__u32 family, const __u64 *address, __u32 how)
{
	struct block_address key = { .address = { address[0], mapped(family, address[1]) } };

	return is_in_force(bpf_map_lookup_elem(&blocked_addrs, &key), how);
}

/* Whether the source is the lower end. */
static __always_inline bool source_is_low(const struct packet *p)
{
	if (p->src[0] != p->dst[0])
		return p->src[0] < p->dst[0];
	if (p->src[1] != p->dst[1])
		return p->src[1] < p->dst[1];
	return p->src_port <= p->dst_port;
}

static __always_inline bool is_flow_blocked(const struct packet *p, __u32 how)
{
	struct block_flow key = { .vlan = p->vlan, .protocol = p->protocol, .family = p->family };

	if (source_is_low(p)) {
		key.low[0] = p->src[0];
		key.low[1] = p->src[1];
		key.high[0] = p->dst[0];
		key.high[1] = p->dst[1];
		key.low_port = p->src_port;
		key.high_port = p->dst_port;
	} else {
		key.low[0] = p->dst[0];
		key.low[1] = p->dst[1];
		key.high[0] = p->src[0];
		key.high[1] = p->src[1];
		key.low_port = p->dst_port;
		key.high_port = p->src_port;
	}
	return is_in_force(bpf_map_lookup_elem(&blocked_flows, &key), how);
}

/*
 * Whether a packet passes whatever is blocked. By direction, else somebody outside would only have to send from a
 * guarded port.
 */
static __always_inline bool is_spared(const struct block_policy *policy, const struct packet *p, bool egress)
{
	if (is_neighbour_discovery(p))
		return true;
	if (!egress)
		return (policy->dhcp && is_dhcp_answer(p)) || is_guard_packet(&policy->guard, p);
	return (policy->dhcp && is_dhcp_request(p)) || is_guard_answer(&policy->guard, p);
}

/*
 * FW_BY_BLOCKED_FLOW, FW_BY_BLOCKED_ADDRESS, or 0. p may be what the parser made of a packet that it could not read
 * to its end. A function of its own, verified once.
 */
__noinline int find_block(const struct packet *p, __u32 how)
{
	struct block_policy *policy;
	__u32 zero = 0;

	if (!has_blocks || !p || !p->family) /* older kernels verify this function also where nobody calls it */
		return 0;
	policy = bpf_map_lookup_elem(&block_policy, &zero);
	if (!policy || is_spared(policy, p, how & BLOCK_EGRESS))
		return 0;
	if (policy->flows && !(how & BLOCK_ADDRESSES) && p->has_ports && p->fragment != LATER_FRAGMENT &&
	    is_flow_blocked(p, how))
		return FW_BY_BLOCKED_FLOW;
	if (policy->addresses &&
	    (is_address_blocked(p->family, p->src, how) || is_address_blocked(p->family, p->dst, how)))
		return FW_BY_BLOCKED_ADDRESS;
	return 0;
}
