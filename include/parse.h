/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a frame to the fields that rules look at. Ethernet, at most two VLAN tags, IPv4 with options, IPv6 with an
 * allow-listed walk of extension headers, TCP, UDP, UDP-Lite, SCTP, ICMP, ICMPv6. Every length is checked against the
 * frame and against the lengths that the headers claim; whatever does not add up is named by enum fw_unparsable and
 * left to the caller's policy. Nothing is read past data_end, and the walk is bounded.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"

enum {
	EXTENSION_HEADERS_MAX = 8,   /* a real packet has one or two */
	VLAN_ID_MASK = 0x0fff,
	FRAGMENT_MORE_V4 = 0x2000,
	FRAGMENT_OFFSET_V4 = 0x1fff,
	FRAGMENT_MORE_V6 = 0x0001,
	FRAGMENT_OFFSET_V6 = 0xfff8,
};

/* Hides from clang what it knows of a value, so that it neither drops a bound that the verifier needs nor makes branches. */
#define OPAQUE(x) asm volatile("" : "+r"(x))

/* Flags of a TCP header. */
enum { TCP_FIN = 1, TCP_SYN = 2, TCP_RST = 4, TCP_ACK = 16 };

/* Where a packet stands in a fragmented datagram. */
enum fragment { NOT_FRAGMENT = 0, FIRST_FRAGMENT = 1, LATER_FRAGMENT = 2 };

struct packet {
	__u64 src[2], dst[2];	/* host order; IPv4 in the low 32 bits of [1] */
	__u32 l3_offset;	/* from the start of the frame */
	__u32 l4_offset;	/* 0 while none was found */
	__u32 fragment_id;	/* as it stands on the wire */
	__u32 nothing;		/* fw_control.nothing: a zero that the verifier cannot know */
	__u16 src_port, dst_port; /* host order; of ICMP echo the identifier, in both */
	__u16 vlan;		/* outer id; 0: untagged, or a priority tag */
	__u8 family;		/* 4, 6, or 0 */
	__u8 protocol;
	__u8 tcp_flags;
	__u8 icmp_type, icmp_code;
	__u8 hop_limit;
	__u8 fragment;		/* enum fragment */
	__u8 has_ports;		/* TCP, UDP, UDP-Lite, SCTP */
	__u8 link_control;	/* not IP, but what a host needs to stay on its link */
};

/* All that is known about a packet in the end. */
struct judgement {
	__u32 answer;	 /* enum fw_answer */
	__u8 drop;
	__u8 reason;
	__u8 state;
	__u8 unparsable;
	__u8 exception;
	__u8 pad[3];
};

/* UDP and what has its ports and length. */
static __always_inline bool is_like_udp(__u32 protocol)
{
	return protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE || protocol == IPPROTO_SCTP;
}

/* ICMP of the packet's own family; in the other one the number means nothing. */
static __always_inline bool is_icmp(__u32 family, __u32 protocol)
{
	return protocol == (family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

/* Ports, flags, type and code. l4 points at the transport header, of which claimed bytes belong to the packet. */
static __always_inline int parse_transport(void *l4, void *data_end, __u32 claimed, struct packet *p)
{
	if (p->protocol == IPPROTO_TCP) {
		__u8 *tcp = l4;

		if (l4 + 20 > data_end || claimed < 20 || tcp[12] < 0x50)
			return FW_SHORT_TRANSPORT;
		p->tcp_flags = tcp[13];
		p->has_ports = 1;
	} else if (is_like_udp(p->protocol)) {
		if (l4 + 8 > data_end || claimed < 8)
			return FW_SHORT_TRANSPORT;
		p->has_ports = 1;
	} else if (is_icmp(p->family, p->protocol)) {
		__u8 *icmp = l4;

		if (l4 + 8 > data_end || claimed < 8)
			return FW_SHORT_TRANSPORT;
		p->icmp_type = icmp[0];
		p->icmp_code = icmp[1];
		/* Echo and its reply, in both families: the identifier tells conversations apart. */
		if ((p->family == 4 && (icmp[0] == 8 || icmp[0] == 0)) ||
		    (p->family == 6 && (icmp[0] == 128 || icmp[0] == 129)))
			p->src_port = p->dst_port = bpf_ntohs(*(__be16 *)(icmp + 4));
		return FW_PARSED;
	} else {
		return FW_PARSED; /* no fields that a rule could ask for */
	}
	p->src_port = bpf_ntohs(((__be16 *)l4)[0]);
	p->dst_port = bpf_ntohs(((__be16 *)l4)[1]);
	return FW_PARSED;
}

/*
 * A first fragment must hold the whole transport header, and a later one must not start inside of it: else the ports
 * that were judged are not those that the receiver puts together.
 */
static __always_inline int check_later_fragment(__u32 offset_bytes, struct packet *p)
{
	p->fragment = LATER_FRAGMENT;
	return offset_bytes < 20 && p->protocol == IPPROTO_TCP ? FW_TINY_FRAGMENT : FW_PARSED;
}

static __always_inline int parse_ipv4(void *data, void *l3, void *data_end, struct packet *p)
{
	struct iphdr *ip = l3;
	__u32 header, total, fragment;
	int result;

	if ((void *)(ip + 1) > data_end)
		return FW_BAD_IPV4;
	header = ip->ihl * 4;
	total = bpf_ntohs(ip->tot_len);
	if (ip->version != 4 || header < sizeof(*ip) || total < header || l3 + header > data_end)
		return FW_BAD_IPV4;
	p->family = 4;
	p->src[1] = bpf_ntohl(ip->saddr);
	p->dst[1] = bpf_ntohl(ip->daddr);
	p->protocol = ip->protocol;
	p->hop_limit = ip->ttl;
	fragment = bpf_ntohs(ip->frag_off);
	if (fragment & (FRAGMENT_OFFSET_V4 | FRAGMENT_MORE_V4)) {
		p->fragment_id = ip->id;
		if (fragment & FRAGMENT_OFFSET_V4)
			return check_later_fragment((fragment & FRAGMENT_OFFSET_V4) * 8, p);
		p->fragment = FIRST_FRAGMENT;
	}
	p->l4_offset = p->l3_offset + header;
	result = parse_transport(l3 + header, data_end, total - header, p);
	return result && p->fragment ? FW_TINY_FRAGMENT : result;
}

/*
 * One extension header's length in bytes by its own type (RFC 8200: 8-byte units after the first 8; RFC 4302: AH counts
 * in 4-byte units; a fragment header has 8 bytes whatever its reserved byte says, RFC 8200 section 4.5). Without
 * branches: eight headers of five types must not be 5^8 paths.
 */
static __always_inline __u32 extension_length(__u32 type, __u32 units)
{
	__u32 ah = (type ^ IPPROTO_AH) - 1, fragment = (type ^ IPPROTO_FRAGMENT) - 1;

	OPAQUE(ah);
	OPAQUE(fragment);
	ah >>= 31;		 /* 1 for AH, else 0 */
	units &= (fragment >> 31) - 1; /* 0 for a fragment header */
	return (units + 1 + ah) << (3 - ah) & 0xfff;
}

static __always_inline bool is_extension(__u32 type)
{
	__u64 known = 1ULL << IPPROTO_HOPOPTS | 1ULL << IPPROTO_ROUTING | 1ULL << IPPROTO_FRAGMENT |
		      1ULL << IPPROTO_AH | 1ULL << IPPROTO_DSTOPTS;

	OPAQUE(known);
	return type < 64 && known >> (type & 63) & 1;
}

static __always_inline int parse_ipv6(void *data, void *l3, void *data_end, struct packet *p)
{
	enum { OFFSET_MASK = 0x7fff }; /* above 22 + 40 + 8 * 4095, for the verifier */
	struct ipv6hdr *ip = l3;
	__be64 *address = l3 + 8;
	__u32 claimed, type, at = p->l3_offset + sizeof(*ip), start = at;
	int result;

	if ((void *)(ip + 1) > data_end || ip->version != 6)
		return FW_BAD_IPV6;
	claimed = bpf_ntohs(ip->payload_len);
	p->family = 6;
	p->src[0] = bpf_be64_to_cpu(address[0]);
	p->src[1] = bpf_be64_to_cpu(address[1]);
	p->dst[0] = bpf_be64_to_cpu(address[2]);
	p->dst[1] = bpf_be64_to_cpu(address[3]);
	p->hop_limit = ip->hop_limit;
	type = ip->nexthdr;

	if (is_extension(type)) {
#pragma clang loop unroll(disable)
		for (int i = 0; i < EXTENSION_HEADERS_MAX; i++) {
			__u8 *extension = data + (at & OFFSET_MASK);

			if ((void *)(extension + 8) > data_end || (type == IPPROTO_HOPOPTS && i))
				return FW_EXTENSIONS;
			if (type == IPPROTO_FRAGMENT) {
				__u32 offset = bpf_ntohs(*(__be16 *)(extension + 2));

				if (p->fragment)
					return FW_EXTENSIONS;
				/* An atomic fragment (RFC 6946) is a whole packet. */
				if (offset & (FRAGMENT_OFFSET_V6 | FRAGMENT_MORE_V6)) {
					p->fragment_id = *(__be32 *)(extension + 4);
					p->fragment = FIRST_FRAGMENT;
				}
				if (offset & FRAGMENT_OFFSET_V6) {
					p->protocol = extension[0];
					return check_later_fragment(offset & FRAGMENT_OFFSET_V6, p);
				}
			}
			at = (at + extension_length(type, extension[1]) + p->nothing) & OFFSET_MASK;
			type = extension[0];
			if (!is_extension(type))
				break;
		}
		if (is_extension(type))
			return FW_EXTENSIONS;
	}
	p->protocol = type;
	at = (at + p->nothing) & OFFSET_MASK;
	if (at - start > claimed || data + at > data_end)
		return FW_EXTENSIONS;
	p->l4_offset = at;
	result = parse_transport(data + at, data_end, claimed - (at - start), p);
	return result && p->fragment ? FW_TINY_FRAGMENT : result;
}

/* Ethernet and VLAN tags. Leaves the ethertype and the offset of what follows. */
static __always_inline int parse_ethernet(void *data, void *data_end, struct packet *p, __be16 *ethertype)
{
	struct ethhdr *ethernet = data;

	if ((void *)(ethernet + 1) > data_end)
		return FW_SHORT_ETHERNET;
	*ethertype = ethernet->h_proto;
	p->l3_offset = sizeof(*ethernet);
#pragma clang loop unroll(full)
	for (int i = 0; i < 3; i++) {
		__be16 *tag = data + p->l3_offset;

		if (*ethertype != bpf_htons(ETH_P_8021Q) && *ethertype != bpf_htons(ETH_P_8021AD))
			break;
		if (i == 2)
			return FW_VLAN_DEPTH;
		if ((void *)(tag + 2) > data_end)
			return FW_SHORT_ETHERNET;
		if (i == 0)
			p->vlan = bpf_ntohs(tag[0]) & VLAN_ID_MASK;
		*ethertype = tag[1];
		p->l3_offset += 4;
	}
	return FW_PARSED;
}

/* A whole frame. p must be zero but for nothing. The result is FW_PARSED or why not; with link_control set it is FW_NOT_IP. */
static __always_inline int parse_frame(void *data, void *data_end, struct packet *p)
{
	__be16 ethertype;
	int result = parse_ethernet(data, data_end, p, &ethertype);

	if (result)
		return result;
	p->l3_offset = (p->l3_offset + p->nothing) & 31;
	if (ethertype == bpf_htons(ETH_P_IP))
		return parse_ipv4(data, data + p->l3_offset, data_end, p);
	if (ethertype == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(data, data + p->l3_offset, data_end, p);
	p->link_control = ethertype == bpf_htons(ETH_P_ARP) || ethertype == bpf_htons(ETH_P_SLOW) ||
			  ethertype == bpf_htons(ETH_P_PAE) || ethertype == bpf_htons(ETH_P_LLDP);
	return FW_NOT_IP;
}

/*
 * Makes the verifier forget which way it came through the parser, by the fields that later branches and offsets depend
 * on. What follows is then verified about once, not once for every combination of headers. Changes no value. Which
 * fields are worth it was found by trying: each one costs stack.
 */
static __always_inline void forget_path(struct packet *p)
{
	__u32 nothing = p->nothing;

	p->l3_offset += nothing;
	p->l4_offset += nothing;
	p->family += nothing;
	p->protocol += nothing;
	p->icmp_type += nothing;
	p->icmp_code += nothing;
	p->fragment += nothing;
	p->has_ports += nothing;
}

/*
 * What every IPv6 host needs to keep its neighbours (RFC 4861: hop limit 255 shows that it comes from the link; RFC
 * 6980: never fragmented), and the queries of the switches that snoop on multicast (RFC 3810: hop limit 1, link-local).
 */
static __always_inline bool is_neighbour_discovery(const struct packet *p)
{
	if (p->family != 6 || p->protocol != IPPROTO_ICMPV6 || p->fragment)
		return false;
	if (p->icmp_type >= 133 && p->icmp_type <= 137)
		return p->hop_limit == 255 && p->icmp_code == 0;
	return p->icmp_type == 130 && p->hop_limit == 1 && p->src[0] >> 54 == 0xfe80 >> 6;
}

/* An answer to this host's own DHCP client: RFC 2131 from port 67 to 68, RFC 8415 from 547 to 546. */
static __always_inline bool is_dhcp_answer(const struct packet *p)
{
	return p->protocol == IPPROTO_UDP &&
	       ((p->family == 4 && p->src_port == 67 && p->dst_port == 68) ||
		(p->family == 6 && p->src_port == 547 && p->dst_port == 546));
}

/* A request of this host's own DHCP client. */
static __always_inline bool is_dhcp_request(const struct packet *p)
{
	return p->protocol == IPPROTO_UDP &&
	       ((p->family == 4 && p->src_port == 68 && p->dst_port == 67) ||
		(p->family == 6 && p->src_port == 546 && p->dst_port == 547));
}
