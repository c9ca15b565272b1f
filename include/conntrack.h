/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connections of this host, so that answers find their way back in. Written by tc_egress for every packet that leaves;
 * read by xdp_firewall only where the state can change a verdict. Who spoke first is kept (origin), and the generation
 * of the rules that judged the connection last: after a change of rules it is judged again as if it were new.
 *
 * The table is bounded and evicts the least recently used connection: only packets that this host sends make entries,
 * so a flood from outside does not push anything out. Writes of different CPUs to one entry may race; each field is
 * written whole and any order of them is a state that the connection was in.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 131072); /* set by config before load */
	__type(key, struct conn_key);
	__type(value, struct conn);
} connections SEC(".maps");

/* Silence after which a connection is forgotten, in jiffies, by phase; [1] is TCP, [0] everything else. */
const volatile __u64 conn_timeout[2][CONN_PHASES];

static __always_inline void conn_key_of(const struct packet *p, bool egress, struct conn_key *key)
{
	key->local[0] = egress ? p->src[0] : p->dst[0];
	key->local[1] = egress ? p->src[1] : p->dst[1];
	key->remote[0] = egress ? p->dst[0] : p->src[0];
	key->remote[1] = egress ? p->dst[1] : p->src[1];
	key->local_port = egress ? p->src_port : p->dst_port;
	key->remote_port = egress ? p->dst_port : p->src_port;
	key->protocol = p->protocol;
	key->family = p->family;
	key->pad[0] = key->pad[1] = 0;
}

static __always_inline bool conn_expired(const struct conn *conn, __u8 protocol, __u64 now)
{
	__u64 phase = conn->phase;

	OPAQUE(phase); /* else the bound is checked on a copy, which older verifiers do not see */
	if (phase >= CONN_PHASES)
		phase = CONN_CLOSING;
	return now - conn->last_jiffies > conn_timeout[protocol == IPPROTO_TCP][phase];
}

static __always_inline bool is_icmp_error(const struct packet *p)
{
	if (p->family == 4)
		return p->protocol == IPPROTO_ICMP &&
		       (p->icmp_type == 3 || p->icmp_type == 4 || p->icmp_type == 5 || p->icmp_type == 11 ||
			p->icmp_type == 12);
	return p->protocol == IPPROTO_ICMPV6 && p->icmp_type < 128;
}

/* Whether a packet without a connection could open one. */
static __always_inline bool can_open(const struct packet *p)
{
	if (p->protocol == IPPROTO_TCP)
		return (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
	if (p->family == 4 && p->protocol == IPPROTO_ICMP)
		return p->icmp_type != 0 && !is_icmp_error(p);
	if (p->family == 6 && p->protocol == IPPROTO_ICMPV6)
		return p->icmp_type != 129 && !is_icmp_error(p);
	return true;
}

/*
 * The key of the connection that an ICMP error speaks of: the datagram that it quotes was sent by this host. False
 * when the quote is too short or not one of ours to judge; then the error is related to nothing. A function of its own,
 * verified once: errors are rare enough to pay for a call.
 */
__noinline int quoted_key(struct xdp_md *ctx, __u32 offset, __u32 family, struct conn_key *key)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	void *quote = data + (offset & 0x7fff) + 8, *l4; /* the mask shows the verifier that the offset is small */
	__be16 *ports;

	if (!key)
		return false;
	if (family == 4) {
		struct iphdr *ip = quote;

		if ((void *)(ip + 1) > data_end || ip->version != 4 || ip->ihl < 5 ||
		    ip->frag_off & bpf_htons(FRAGMENT_OFFSET_V4))
			return false;
		key->local[0] = key->remote[0] = 0;
		key->local[1] = bpf_ntohl(ip->saddr);
		key->remote[1] = bpf_ntohl(ip->daddr);
		key->protocol = ip->protocol;
		l4 = quote + ip->ihl * 4;
	} else {
		struct ipv6hdr *ip = quote;
		__be64 *address = quote + 8;

		if ((void *)(ip + 1) > data_end || ip->version != 6)
			return false;
		key->local[0] = bpf_be64_to_cpu(address[0]);
		key->local[1] = bpf_be64_to_cpu(address[1]);
		key->remote[0] = bpf_be64_to_cpu(address[2]);
		key->remote[1] = bpf_be64_to_cpu(address[3]);
		key->protocol = ip->nexthdr; /* a quote with extension headers is related to nothing */
		l4 = quote + sizeof(*ip);
	}
	if (l4 + 8 > data_end)
		return false;
	ports = l4;
	if (key->protocol == IPPROTO_ICMP || key->protocol == IPPROTO_ICMPV6) {
		key->local_port = key->remote_port = bpf_ntohs(ports[2]);
	} else {
		key->local_port = bpf_ntohs(ports[0]);
		key->remote_port = bpf_ntohs(ports[1]);
	}
	key->family = family;
	key->pad[0] = key->pad[1] = 0;
	return true;
}

/* What is known about a connection: bits of the answer of conn_find(). */
enum conn_known {
	CONN_KNOWN = 1,
	CONN_HERE = 2,	    /* this host opened it */
	CONN_STALE = 4,	    /* judged by older rules; what was never judged is not */
	CONN_TOUCH = 8,	    /* a passing packet changes the entry: call conn_confirm() */
};

/* Kernels before 6.2 take no key from a function's argument, so it is copied. */
static __always_inline struct conn *conn_lookup(const struct conn_key *key)
{
	struct conn_key copy = *key;

	return bpf_map_lookup_elem(&connections, &copy);
}

/* Looks a connection up and changes nothing. A function of its own, verified once. */
__noinline int conn_find(struct conn_key *key, __u32 generation)
{
	__u64 now = bpf_jiffies64();
	struct conn *conn;
	int known = CONN_KNOWN;

	if (!key)
		return 0;
	conn = conn_lookup(key);
	if (!conn || conn_expired(conn, key->protocol, now))
		return 0;
	if (conn->origin == CONN_OPENED_HERE)
		known |= CONN_HERE;
	/* 0 is what tc_egress noted and no arriving packet has confirmed: the answer to it is the first one. */
	if (conn->generation != generation)
		known |= conn->generation ? CONN_STALE | CONN_TOUCH : CONN_TOUCH;
	if (conn->last_jiffies != now || conn->phase == CONN_OPENING)
		known |= CONN_TOUCH;
	return known;
}

/* An arriving packet of a known connection passed: the connection lives on, under these rules. */
__noinline int conn_confirm(struct conn_key *key, __u32 generation, __u32 tcp_flags)
{
	struct conn *conn;

	if (!key)
		return 0;
	conn = conn_lookup(key);
	if (!conn)
		return 0;
	conn->generation = generation;
	conn->last_jiffies = bpf_jiffies64();
	/* A forged RST must not close what it guesses: only FIN shortens the life, and traffic prolongs it again. */
	if (key->protocol == IPPROTO_TCP && tcp_flags & TCP_FIN)
		conn->phase = CONN_CLOSING;
	else if (conn->phase == CONN_OPENING)
		conn->phase = CONN_OPEN;
	return 1;
}

/* A packet leaves this host. Returns false when the table took no new entry. */
static __always_inline bool conn_leaving(const struct packet *p)
{
	__u64 now = bpf_jiffies64();
	struct conn_key key = {};
	struct conn fresh = {};
	struct conn *conn;
	bool syn = p->protocol == IPPROTO_TCP && p->tcp_flags & TCP_SYN;

	if (is_icmp_error(p) || (p->family == 4 && p->protocol == IPPROTO_ICMP && p->icmp_type == 0) ||
	    (p->family == 6 && p->protocol == IPPROTO_ICMPV6 && p->icmp_type == 129))
		return true; /* errors and echo replies open nothing */
	if (p->protocol == IPPROTO_TCP && p->tcp_flags & TCP_RST && !(p->tcp_flags & TCP_SYN)) {
		conn_key_of(p, true, &key);
		conn = bpf_map_lookup_elem(&connections, &key);
		if (conn)
			conn->phase = CONN_CLOSING;
		return true; /* a refusal opens nothing */
	}
	conn_key_of(p, true, &key);
	conn = bpf_map_lookup_elem(&connections, &key);
	if (conn && !conn_expired(conn, p->protocol, now) && !(syn && conn->phase == CONN_CLOSING)) {
		/* Writing only when time moved keeps the line shared between CPUs. */
		if (conn->last_jiffies != now)
			conn->last_jiffies = now;
		if (p->protocol == IPPROTO_TCP) {
			if (p->tcp_flags & TCP_FIN)
				conn->phase = CONN_CLOSING;
			else if (conn->phase == CONN_OPENING && !syn)
				conn->phase = CONN_OPEN;
		}
		return true;
	}
	fresh.last_jiffies = now;
	/* A SYN with ACK answers somebody. Anything else was opened here, or was going on before the agent came. */
	if (syn && p->tcp_flags & TCP_ACK)
		fresh.origin = CONN_OPENED_THERE;
	fresh.phase = p->protocol == IPPROTO_TCP && !syn ? CONN_OPEN : CONN_OPENING;
	return !bpf_map_update_elem(&connections, &key, &fresh, BPF_ANY);
}
