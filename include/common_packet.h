/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The short way to read a packet: what most packets are, untagged, whole and without options, at fixed places. What is
 * not certain is left to parse_frame(), with the same result for what both can read.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"

/*
 * A flow's word, from the low end: ports as they stand on the wire, or protocol, ICMP type and code in a byte each; then
 * what tells it from others, then the answer. A word of 0 is a free entry.
 */
enum flow_word {
	FLOW_KIND = 32,		/* 2 bits, enum flow_kind */
	FLOW_IFACE = 34,	/* 6 bits, number of the interface */
	FLOW_TCP_FLAGS = 40,	/* 6 bits: only FIN unless rules ask for them */
	FLOW_ANSWER = 46,	/* 18 bits */
};

enum flow_kind { FLOW_NONE = 0, FLOW_TCP = 1, FLOW_UDP = 2, FLOW_OTHER = 3 };

/* A common packet, by what a flow is told from others with. */
struct flow_key {
	__u64 src[2], dst[2];	/* as they stand on the wire; both addresses of IPv4 in src[0] */
	__u64 word;		/* without an answer; of FLOW_NONE when the flow cannot be kept */
	__u32 ports;		/* like the word's low half, without the protocol */
	__u8 family, protocol, tcp_flags, iface;
};

/*
 * The transport header of a common packet, which says that it has claimed bytes from header bytes before this one on. key
 * has family, protocol and iface. False when it is not common; uses are those of the rules.
 */
static __always_inline bool read_flow_transport(const __u8 *l4, __u32 header, __u32 claimed, __u32 uses,
						struct flow_key *key)
{
	__u32 kind = FLOW_OTHER, flags = 0;

	key->ports = *(__u32 *)l4;
	key->tcp_flags = 0;
	key->word = key->ports;
	if (key->protocol == IPPROTO_TCP) {
		if (claimed < header + 20 || l4[12] < 0x50)
			return false;
		key->tcp_flags = l4[13];
		/* What opens a flow is no flow yet. Nobody has to be remembered for a SYN, least of all who was invented. */
		kind = (key->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN ? FLOW_NONE : FLOW_TCP;
		flags = key->tcp_flags & TCP_FIN; /* the end of a connection has to be seen */
		if (uses & FW_USES_TCP_FLAGS) {
			flags = key->tcp_flags & 63;
			if (key->tcp_flags & ~63) /* there is no room for the two of ECN */
				kind = FLOW_NONE;
		}
	} else if (is_like_udp(key->protocol)) {
		if (claimed < header + 8)
			return false;
		kind = key->protocol == IPPROTO_UDP ? FLOW_UDP : FLOW_NONE;
	} else {
		if (is_icmp(key->family, key->protocol)) {
			if (claimed < header + 8)
				return false;
			if (key->family == 6 && l4[0] >= 130 && l4[0] <= 137)
				return false; /* a host may need it to keep its neighbours */
			key->ports &= 0xffff;
		} else {
			if (claimed < header)
				return false;
			key->ports = 0;
		}
		key->word = key->protocol | key->ports << 8;
	}
	key->word |= (__u64)kind << FLOW_KIND | (__u64)key->iface << FLOW_IFACE | (__u64)flags << FLOW_TCP_FLAGS;
	return true;
}

/* What a common packet has at least, in both families. */
enum { FLOW_FRAME_MIN = 54 };

/* A common packet: untagged, whole, without options, of FLOW_FRAME_MIN bytes; key has iface. False when it is not one. */
static __always_inline bool read_flow_v4(void *data, __u32 uses, struct flow_key *key)
{
	struct iphdr *ip = data + 14;

	if (*(__u8 *)ip != 0x45 || ip->frag_off & bpf_htons(FRAGMENT_OFFSET_V4 | FRAGMENT_MORE_V4))
		return false;
	key->family = 4;
	key->protocol = ip->protocol;
	key->src[0] = (__u64)ip->daddr << 32 | ip->saddr;
	key->src[1] = key->dst[0] = key->dst[1] = 0;
	return read_flow_transport(data + 34, sizeof(*ip), bpf_ntohs(ip->tot_len), uses, key);
}

/* The same for IPv6: untagged and without extension headers. */
static __always_inline bool read_flow_v6(void *data, void *data_end, __u32 uses, struct flow_key *key)
{
	struct ipv6hdr *ip = data + 14;
	__u64 *address = data + 22;

	if (data + 74 > data_end || ip->version != 6 || is_extension(ip->nexthdr))
		return false;
	key->family = 6;
	key->protocol = ip->nexthdr;
	key->src[0] = address[0];
	key->src[1] = address[1];
	key->dst[0] = address[2];
	key->dst[1] = address[3];
	return read_flow_transport(data + 54, 0, bpf_ntohs(ip->payload_len), uses, key);
}

/* The same as parse_frame() makes of it, as far as a rule can ask; p has everything else from before. */
static __always_inline void packet_of(const struct flow_key *key, struct packet *p)
{
	if (key->family == 4) {
		p->src[0] = p->dst[0] = 0;
		p->src[1] = bpf_ntohl(key->src[0]);
		p->dst[1] = bpf_ntohl(key->src[0] >> 32);
	} else {
		p->src[0] = bpf_be64_to_cpu(key->src[0]);
		p->src[1] = bpf_be64_to_cpu(key->src[1]);
		p->dst[0] = bpf_be64_to_cpu(key->dst[0]);
		p->dst[1] = bpf_be64_to_cpu(key->dst[1]);
	}
	p->vlan = 0;
	p->fragment = NOT_FRAGMENT;
	p->family = key->family;
	p->protocol = key->protocol;
	p->tcp_flags = key->tcp_flags;
	p->has_ports = p->protocol == IPPROTO_TCP || is_like_udp(p->protocol);
	p->src_port = bpf_ntohs(key->ports);
	p->dst_port = bpf_ntohs(key->ports >> 16);
	p->icmp_type = key->ports; /* where it has no ports */
	p->icmp_code = key->ports >> 8;
}

/* Reads the common packet by the short way, as of no particular interface. False when it is not one. */
static __always_inline bool read_common_flow(struct xdp_md *ctx, struct flow_key *key)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;

	if (data + FLOW_FRAME_MIN > data_end)
		return false;
	key->iface = 0;
	if (*(__be16 *)(data + 12) == bpf_htons(ETH_P_IP))
		return read_flow_v4(data, 0, key);
	if (*(__be16 *)(data + 12) == bpf_htons(ETH_P_IPV6))
		return read_flow_v6(data, data_end, 0, key);
	return false;
}

/* The same, as parse_frame() leaves it. */
static __always_inline bool read_common_packet(struct xdp_md *ctx, struct packet *p)
{
	struct flow_key key;

	if (!read_common_flow(ctx, &key))
		return false;
	packet_of(&key, p);
	return true;
}
