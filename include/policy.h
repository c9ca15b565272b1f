/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The parts of a generation's policy that every XDP program asks: which interface this is, and who must not be shut out. */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"

static __always_inline __u32 iface_number(const struct fw_policy *policy, __u32 ifindex)
{
	const struct fw_iface *iface = &policy->iface[ifindex * policy->iface_multiplier >> 24];

	return iface->ifindex == ifindex ? iface->number & (FW_IFACES - 1) : FW_OTHER_IFACE;
}

/*
 * SSH and the control port, from where somebody is working: no rule may shut them out. IPv4 sources come mapped into
 * IPv6. A function of its own, verified once.
 */
__noinline int is_guarded(const struct fw_guard *guard, __u64 high, __u64 low, __u32 port)
{
	bool guarded = false;

	if (!guard)
		return false;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < FW_GUARD_PORTS; i++)
		if (i < guard->ports && guard->port[i] == port)
			guarded = true;
	if (!guarded)
		return false;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < FW_GUARD_NETS; i++) {
		const struct fw_net *net = &guard->net[i];

		if (i >= guard->nets)
			break;
		if (!(((high ^ net->addr[0]) & net->mask[0]) | ((low ^ net->addr[1]) & net->mask[1])))
			return true;
	}
	return false;
}

/* Networks of the guard are kept as IPv6; IPv4 is mapped. */
static __always_inline __u64 mapped(__u32 family, __u64 low)
{
	return family == 4 ? low | 0xffff00000000ULL : low;
}

/* Whether a packet is one of somebody who is working here. */
static __always_inline bool is_guard_packet(const struct fw_guard *guard, const struct packet *p)
{
	return p->protocol == IPPROTO_TCP && guard->filter >> (p->dst_port & 63) & 1 &&
	       is_guarded(guard, p->src[0], mapped(p->family, p->src[1]), p->dst_port);
}

/* Whether it is this host's answer to one. */
static __always_inline bool is_guard_answer(const struct fw_guard *guard, const struct packet *p)
{
	return p->protocol == IPPROTO_TCP && guard->filter >> (p->src_port & 63) & 1 &&
	       is_guarded(guard, p->dst[0], mapped(p->family, p->dst[1]), p->src_port);
}
