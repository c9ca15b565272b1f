/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the host's routing tables say of a packet: whether its source can be where it seems to come from (RFC 3704), and
 * where it goes next. A lookup costs more than a verdict.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"
#include "policy.h"

enum { LOOPBACK_IFINDEX = 1 };

/* struct fw_upper -> a bit for each guarded interface. The agent is its only writer. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FW_UPPERS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fw_upper);
	__type(value, __u64);
} fw_uppers SEC(".maps");

/* Where a packet goes next. */
struct route {
	__u64 next_hop[2]; /* host order */
	__u32 ifindex;
	__u32 family; /* 0: it is not forwarded */
};

/* Multicast or limited broadcast: never a source. */
static __always_inline bool is_many(const struct packet *p, const __u64 address[2])
{
	if (p->family == 4)
		return address[1] >> 28 == 0xe || address[1] == 0xffffffff;
	return address[0] >> 56 == 0xff;
}

/* Addresses that mean another host on each link: the kernel's tables know them only with the link. */
static __always_inline bool is_link_local_v6(const __u64 address[2])
{
	return address[0] >> 54 == 0xfe80 >> 6;
}

static __always_inline void fib_address(__be32 to[4], const struct packet *p, const __u64 address[2])
{
	if (p->family == 4) {
		to[0] = bpf_htonl(address[1]);
		return;
	}
	to[0] = bpf_htonl(address[0] >> 32);
	to[1] = bpf_htonl(address[0]);
	to[2] = bpf_htonl(address[1] >> 32);
	to[3] = bpf_htonl(address[1]);
}

/*
 * Whether no host that may be behind the interface on which the packet came has its source. The question is put as the
 * kernel's own reverse-path filter puts it: which way would go an answer that this host makes, from the packet's
 * destination to its source. Made on this host is what comes from the loopback interface; that one has to have forwarding
 * switched on, which the agent sees to, since the helper answers only then. If it has not, nobody is a forger.
 *
 * A source that is unspecified is somebody who has no address so far: it may speak to all on the link, as DHCP, IGMP and
 * MLD do. What this host says to itself does not come from outside. A function of its own, verified once.
 */
__noinline int is_forged(struct xdp_md *ctx, struct fw_policy *policy, struct packet *p)
{
	struct bpf_fib_lookup fib = { .ifindex = LOOPBACK_IFINDEX };
	struct fw_upper upper = {};
	__u32 ifindex = ctx->ingress_ifindex, number;
	__u64 *guarded;
	long said;

	if (!policy || !p || ifindex == LOOPBACK_IFINDEX)
		return false;
	if (is_many(p, p->src))
		return true;
	if (p->family == 4 ? !(p->src[1] >> 24) : !(p->src[0] | p->src[1]))
		return p->src[1] || !is_many(p, p->dst);
	if (p->family == 6 && is_link_local_v6(p->src))
		return false;

	fib.family = p->family == 4 ? AF_INET : AF_INET6;
	fib_address(fib.dst, p, p->src);
	/* Rules may look at it; what is not one host's address would end the lookup. */
	if (!is_many(p, p->dst) && (p->family == 4 || !is_link_local_v6(p->dst)))
		fib_address(fib.src, p, p->dst);
	said = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (said == BPF_FIB_LKUP_RET_BLACKHOLE || said == BPF_FIB_LKUP_RET_UNREACHABLE ||
	    said == BPF_FIB_LKUP_RET_PROHIBIT || said == BPF_FIB_LKUP_RET_NOT_FWDED)
		return true;
	if (policy->rp_filter != FW_RP_STRICT || (said != BPF_FIB_LKUP_RET_SUCCESS && said != BPF_FIB_LKUP_RET_NO_NEIGH))
		return false;

	if (!p->vlan && fib.ifindex == ifindex)
		return false;
	number = iface_number(policy, ifindex);
	if (number == FW_OTHER_IFACE)
		return false; /* a port of a guarded bond, which runs the program on its ports: where it stands is not known */
	upper.ifindex = fib.ifindex;
	upper.vlan = p->vlan;
	guarded = bpf_map_lookup_elem(&fw_uppers, &upper);
	if (guarded && *guarded >> number & 1)
		return false;
	upper.vlan = FW_ANY_VLAN;
	guarded = bpf_map_lookup_elem(&fw_uppers, &upper);
	return !(guarded && *guarded >> number & 1);
}

/*
 * The way of a packet that this host forwards. It is asked for on the interface on which the packet came: where that one
 * does not forward, there is none. A function of its own, verified once.
 */
__noinline int find_route(struct xdp_md *ctx, struct packet *p, struct route *route)
{
	struct bpf_fib_lookup fib = { .ifindex = ctx->ingress_ifindex };
	long said;

	if (!p || !route)
		return 0;
	route->next_hop[0] = route->next_hop[1] = 0;
	route->ifindex = route->family = 0;
	if (!p->family)
		return 0;
	fib.family = p->family == 4 ? AF_INET : AF_INET6;
	fib.l4_protocol = p->protocol;
	if (p->has_ports) {
		fib.sport = bpf_htons(p->src_port);
		fib.dport = bpf_htons(p->dst_port);
	}
	fib_address(fib.src, p, p->src);
	fib_address(fib.dst, p, p->dst);
	said = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (said != BPF_FIB_LKUP_RET_SUCCESS && said != BPF_FIB_LKUP_RET_NO_NEIGH)
		return 0;
	route->ifindex = fib.ifindex;
	if (fib.family == AF_INET) {
		route->family = 4;
		route->next_hop[1] = bpf_ntohl(fib.dst[0]);
	} else { /* also a gateway of IPv4 (RFC 8950) */
		route->family = 6;
		route->next_hop[0] = (__u64)bpf_ntohl(fib.dst[0]) << 32 | bpf_ntohl(fib.dst[1]);
		route->next_hop[1] = (__u64)bpf_ntohl(fib.dst[2]) << 32 | bpf_ntohl(fib.dst[3]);
	}
	return 1;
}
