// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * SYN cookies before the stack: answers the SYNs that xdp_ratelimit hands over, with cookies that this host's own TCP
 * accepts, so that the connection comes to be when the client acknowledges, without a proxy and without memory for who
 * never does. While cookies are in use, acknowledgements without a connection must carry one.
 *
 * The answer is what the host itself would send: MSS from the MTU and the listener, and where time stamps have no secret
 * offset, window scale, SACK and time stamp, which is where the kernel finds the first two again. It is never longer than
 * what it answers. Checksums of what comes in are not looked at: between local interfaces they are not there yet, and
 * who forges an address can also count.
 *
 * The stack accepts a cookie only for a listener that is short of room. bpf_tcp_gen_syncookie() notes that as if it was,
 * when net.ipv4.tcp_syncookies is 2; once a second is enough. So every CPU asks once a second who listens where.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "abi.h"
#include "parse.h"
#include "common_packet.h"
#include "chain.h"
#include "syn.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* A frame may stand in several buffers (jumbo frames). */
const volatile __u8 multi_buffer;

/* The kernel makes cookies without a listener (6.0+). */
const volatile __u8 has_raw_helpers;

/* Ticks of a second, and nanoseconds of a tick. */
const volatile __u32 second = 1000;
const volatile __u64 tick_ns = 1000000;

/* Odd numbers drawn at each load. */
const volatile __u64 secret[4];

/* Written by the agent. */
struct syn_host host SEC(".bss.host");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FW_IFACES);
	__type(key, __u32);
	__type(value, struct syn_iface);
} syn_ifaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SYN_SERVICES);
	__type(key, __u32);
	__type(value, struct syn_service);
} syn_services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct syn_counts);
} syn_counts SEC(".maps");

/*
 * Answers by source, a cell each: the second in the upper half, then how many. Sources that share a cell share its
 * answers: with as many as there are cells, each a SYN a second, one in the cell. CPUs that meet there may answer a few more.
 */
__u32 sources[SYN_SOURCES] SEC(".bss.sources");

/*
 * Flows, a cell each with the time of the last one: those that were open a moment ago, and those that have ended and may
 * be in TIME_WAIT. A flow that shares a cell is looked up, or let through to a stack that knows it is nobody's.
 */
__u8 open_flows[SYN_FLOWS] SEC(".bss.open"), ended_flows[SYN_FLOWS] SEC(".bss.ended");

/* Numbers of seconds by SYN_EPOCH_SECS come round after this; 0 is never. */
enum { EPOCHS = 255, OPEN_EPOCHS = 1, ENDED_EPOCHS = 8 /* 64 s, for TCP's TIME_WAIT of 60 */ };

/* RFC 7323 section 2.3 */
enum { WSCALE_MAX = 14 };

/* A SYN, or an acknowledgement. */
struct segment {
	struct iphdr ipv4;	/* as much of it as cookies are made from */
	struct ipv6hdr ipv6;
	struct tcphdr tcp;
	__u8 mss_option[4];	/* right behind the header */
	__u32 options[16];	/* as they stand on the wire, and behind them zeros: the end of options */
	__u32 timestamp;	/* as it stands on the wire */
	__u16 mss;		/* 0: not said */
	__u8 wscale;
	__u8 has_wscale, has_timestamp, has_sack;
	__u8 timestamp_at;	/* in options; at most 32, as the other value is behind it */
	__u32 options_end;	/* bytes of them */
	__u32 at;		/* where in them read_options() is */
};

/* What an answer is made from; as it stands on the wire, but for what was found out. IPv4 addresses in the first word. */
struct question {
	__be32 saddr[4], daddr[4];
	__be32 seq, timestamp;
	__be16 source, dest;
	__u8 family, wscale, has_wscale, has_timestamp, has_sack;
};

struct work {
	struct packet packet;
	struct segment segment;
	struct question question;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct work);
} syn_work SEC(".maps");

/* What is read of the kernel's sockets; the kernel says where it stands (CO-RE). */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct sock {
	int sk_rcvbuf;
	__u8 sk_userlocks : 4;
};
struct inet_sock {
	struct sock sk;
};
struct inet_connection_sock {
	struct inet_sock icsk_inet;
};
struct tcp_options_received {
	__u16 user_mss;
};
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	struct tcp_options_received rx_opt;
	__u32 window_clamp;
	__u8 scaling_ratio;	/* 6.6 */
};
#pragma clang attribute pop

static __always_inline void count_result(enum syn_result result)
{
	__u32 zero = 0;
	struct syn_counts *counts = bpf_map_lookup_elem(&syn_counts, &zero);

	if (counts)
		counts->result[result]++;
}

static __always_inline __u64 mixed(__u64 hash)
{
	hash ^= hash >> 32;
	hash *= 0xd6e8feb86659fd93ULL;
	return hash ^ hash >> 32;
}

static __always_inline __u32 flow_cell(const struct packet *p)
{
	__u64 hash = (p->src[0] ^ p->dst[1]) * secret[0] + p->src[1] * secret[1] + p->dst[0] * secret[2];

	return mixed(hash + ((__u32)p->src_port << 16 | p->dst_port) * secret[3]) & (SYN_FLOWS - 1);
}

/* The order at hand, with the clocks of this tick. */
static __always_inline struct syn_order *order_now(void)
{
	struct syn_order *order = order_at_hand();
	__u64 tick = bpf_jiffies64();

	if (order && order->tick != (__u32)tick) {
		order->tick = tick;
		order->second = tick / second;
		order->milliseconds = (host.tick_zero_ns + tick * tick_ns) / 1000000;
		order->epoch = 1 + order->second / SYN_EPOCH_SECS % EPOCHS;
	}
	return order;
}

static __always_inline bool is_within(__u8 cell, __u32 now, __u32 epochs)
{
	return cell && now - cell + (now < cell ? EPOCHS : 0) <= epochs;
}

/* Whether a source may have another answer in this second. */
static __always_inline bool may_answer(const struct packet *p, const struct syn_order *order)
{
	__u64 high = p->src[0], low = p->src[1];
	__u32 now = order->second, *cell, old;

	if (p->family == 6) {
		if (order->prefix < 64)
			high &= ~0ULL << ((64 - order->prefix) & 63);
		low &= order->prefix > 64 ? ~0ULL << ((128 - order->prefix) & 63) : 0;
	}
	cell = &sources[mixed(high * secret[0] + low * secret[1]) & (SYN_SOURCES - 1)];
	old = *(volatile __u32 *)cell;
	if ((old >> 16) != (now & 0xffff))
		old = now << 16;
	if ((old & 0xffff) >= order->per_source)
		return false;
	*(volatile __u32 *)cell = old + 1;
	return true;
}

/* The packet. False when it is nothing to be answered. A function of its own, verified once. */
__noinline int read_packet(struct xdp_md *ctx, struct work *work)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct packet p = { .nothing = host.pad[0] };
	int why = parse_frame(data, data_end, &p);

	if (!work)
		return false;
	work->packet = p;
	return !why && !p.fragment && p.protocol == IPPROTO_TCP;
}

/*
 * The options that matter. Options, position and what is found out stand in memory, of which the verifier knows nothing:
 * so it sees each step once, and not once for each way to it.
 */
static __always_inline bool read_options(struct segment *s)
{
	enum { OPTIONS_MAX = 40, MASK = 63 };
	const __u8 *options = (const __u8 *)s->options;

#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < OPTIONS_MAX; i++) {
		__u32 at = *(volatile __u32 *)&s->at & MASK, end = *(volatile __u32 *)&s->options_end, kind, length;

		if (at >= end)
			return true;
		kind = options[at];
		length = options[(at + 1) & MASK];
		if (kind == 0)
			return true;
		if (kind == 1)
			length = 1;
		else if (length < 2 || at + length > end)
			return false;
		*(volatile __u32 *)&s->at = at + length;
		if (kind == 2 && length == 4) {
			s->mss = options[(at + 2) & MASK] << 8 | options[(at + 3) & MASK];
		} else if (kind == 3 && length == 3) {
			s->wscale = options[(at + 2) & MASK];
			s->has_wscale = 1;
		} else if (kind == 4 && length == 2) {
			s->has_sack = 1;
		} else if (kind == 8 && length == 10) {
			s->timestamp_at = at + 2;
			s->has_timestamp = 1;
		}
	}
	return true;
}

/*
 * The TCP header and the options that matter, into work->segment, as a segment with no option but the MSS. False when the
 * options are not what a host writes. A function of its own, verified once.
 */
__noinline int read_segment(struct xdp_md *ctx, struct work *work)
{
	enum { OFFSET_MASK = 0x7fff, WORDS_MAX = 10 };
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct segment *s;
	struct tcphdr *tcp;
	__u32 *word;

	if (!work)
		return false;
	s = &work->segment;
	__builtin_memset(s, 0, sizeof(*s));
	tcp = data + (work->packet.l4_offset & OFFSET_MASK);
	if ((void *)(tcp + 1) > data_end)
		return false;
	s->tcp = *tcp;
	s->options_end = tcp->doff * 4 - sizeof(*tcp);
	word = (void *)(tcp + 1);
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < WORDS_MAX; i++, word++) {
		if (4 * i >= *(volatile __u32 *)&s->options_end)
			break;
		if ((void *)(word + 1) > data_end)
			return false;
		s->options[i & 15] = *word;
	}
	if (!read_options(s))
		return false;
	if (s->wscale > WSCALE_MAX)
		s->wscale = WSCALE_MAX;
	__builtin_memcpy(&s->timestamp, (__u8 *)s->options + (s->timestamp_at & 63), sizeof(s->timestamp));
	s->tcp.doff = s->mss ? 6 : 5;
	s->mss_option[0] = 2;
	s->mss_option[1] = 4;
	s->mss_option[2] = s->mss >> 8;
	s->mss_option[3] = s->mss;
	if (work->packet.family == 4) {
		s->ipv4.version = 4;
		s->ipv4.ihl = 5;
		s->ipv4.protocol = IPPROTO_TCP;
		s->ipv4.saddr = bpf_htonl(work->packet.src[1]);
		s->ipv4.daddr = bpf_htonl(work->packet.dst[1]);
	} else {
		__u64 *address = (void *)s->ipv6.saddr;

		s->ipv6.version = 6;
		s->ipv6.nexthdr = IPPROTO_TCP;
		address[0] = bpf_cpu_to_be64(work->packet.src[0]);
		address[1] = bpf_cpu_to_be64(work->packet.src[1]);
		address[2] = bpf_cpu_to_be64(work->packet.dst[0]);
		address[3] = bpf_cpu_to_be64(work->packet.dst[1]);
	}
	return true;
}

/* The socket that the stack would give the packet to: of the connection, or of who listens. To be released. */
static __always_inline struct bpf_sock *find_socket(struct xdp_md *ctx, const struct work *work)
{
	const struct segment *s = &work->segment;
	struct bpf_sock_tuple tuple = {};

	if (work->packet.family == 4) {
		tuple.ipv4.saddr = s->ipv4.saddr;
		tuple.ipv4.daddr = s->ipv4.daddr;
		tuple.ipv4.sport = s->tcp.source;
		tuple.ipv4.dport = s->tcp.dest;
		return bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	__builtin_memcpy(tuple.ipv6.saddr, s->ipv6.saddr, sizeof(tuple.ipv6.saddr) * 2);
	tuple.ipv6.sport = s->tcp.source;
	tuple.ipv6.dport = s->tcp.dest;
	return bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
}

/* A cookie of a listener, which notes that it gave one; negative when it takes no more connections. */
static __always_inline __s64 cookie_of(struct bpf_sock *listener, struct work *work)
{
	struct segment *s = &work->segment;
	__u32 length = s->mss ? sizeof(s->tcp) + sizeof(s->mss_option) : sizeof(s->tcp);

	if (work->packet.family == 4)
		return bpf_tcp_gen_syncookie(listener, &s->ipv4, sizeof(s->ipv4), &s->tcp, length);
	return bpf_tcp_gen_syncookie(listener, &s->ipv6, sizeof(s->ipv6), &s->tcp, length);
}

/* floor(log2(value)), of at least 1. */
static __always_inline __u32 log2_of(__u32 value)
{
	__u32 log = 0;

#pragma clang loop unroll(full)
	for (__u32 step = 16; step; step >>= 1) {
		__u32 high = (value >> log) >> step != 0;

		log += high * step;
	}
	return log;
}

/* Of a TCP header, without scale. */
enum { WINDOW_MAX = 0xffff };

/* The first window to be announced: whole segments, as many as there is space for. */
static __always_inline __u32 window_of(__u32 space, __u32 segment)
{
	__u32 most = host.window_signed ? WINDOW_MAX / 2 : WINDOW_MAX;

	if (space > segment)
		space -= space % segment;
	return space < most ? space : most;
}

/*
 * Window and scale as the stack will choose them when it sees the cookie: tcp_select_initial_window(). A window that is
 * announced here and not granted there would let the client send what is thrown away.
 */
static __always_inline void size_window(struct bpf_sock *listener, struct syn_service *service)
{
	enum { RCVBUF_LOCK = 2, TIMESTAMP_BYTES = 12 };
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(listener);
	__u32 space, clamp, scaled, buffer;

	service->window[0] = service->window[1] = WINDOW_MAX / 4;
	service->wscale = 0;
	if (!tcp)
		return;
	buffer = tcp->inet_conn.icsk_inet.sk.sk_rcvbuf;
	if (bpf_core_field_exists(tcp->scaling_ratio))
		space = (__u64)buffer * tcp->scaling_ratio >> 8;
	else
		space = buffer / 2; /* tcp_adv_win_scale is 1 */
	clamp = tcp->window_clamp;
	if (BPF_CORE_READ_BITFIELD(&tcp->inet_conn.icsk_inet.sk, sk_userlocks) & RCVBUF_LOCK && (!clamp || clamp > space))
		clamp = space;
	if (tcp->rx_opt.user_mss && tcp->rx_opt.user_mss < service->mss)
		service->mss = tcp->rx_opt.user_mss;
	scaled = host.receive_max > space ? host.receive_max : space;
	if (clamp && clamp < scaled)
		scaled = clamp;
	if (clamp && clamp < space)
		space = clamp;
	service->window[0] = window_of(space, service->mss);
	service->window[1] = window_of(space, service->mss - TIMESTAMP_BYTES);
	scaled = log2_of(scaled | 1);
	service->wscale = scaled < 15 ? 0 : scaled > 29 ? 14 : scaled - 15;
}

/* Finds out who listens where a SYN goes to. A function of its own, verified once; the result is in service->state. */
__noinline int look_at_service(struct xdp_md *ctx, struct work *work, struct syn_service *service)
{
	__u32 ifindex = ctx->ingress_ifindex, mtu = 0, tick = bpf_jiffies64(), headers;
	struct syn_iface *iface = bpf_map_lookup_elem(&syn_ifaces, &ifindex);
	struct bpf_sock *socket;

	if (!work || !service)
		return 0;
	service->dst[0] = work->packet.dst[0];
	service->dst[1] = work->packet.dst[1];
	service->port = work->packet.dst_port;
	service->family = work->packet.family;
	service->ifindex = ifindex;
	service->state = SYN_NOBODY;
	service->until = tick + second;
	if (iface)
		__builtin_memcpy(service->mac, iface->mac, sizeof(service->mac));
	else
		__builtin_memset(service->mac, 0, sizeof(service->mac));
	/* Only asked for the number. That this packet is too long for it, or not, is of no interest. */
	bpf_check_mtu(ctx, 0, &mtu, 0, 0);
	headers = service->family == 4 ? 40 : 60;
	service->mss = mtu < headers + 88 ? 88 : mtu - headers > 0xffff ? 0xffff : mtu - headers;
	socket = find_socket(ctx, work);
	if (!socket)
		return 0;
	if (socket->state != BPF_TCP_LISTEN) {
		service->state = SYN_CONNECTION;
		service->until = tick; /* of this packet only */
	} else if (cookie_of(socket, work) < 0) {
		service->state = SYN_REFUSED;
		service->until = tick + second / 16;
	} else {
		service->state = SYN_LISTENER;
		size_window(socket, service);
	}
	bpf_sk_release(socket);
	return 0;
}

static __always_inline struct syn_service *service_at(const struct packet *p)
{
	__u64 hash = p->dst[0] * secret[0] + p->dst[1] * secret[1] + p->dst_port * secret[2];
	__u32 index = mixed(hash) & (SYN_SERVICES - 1);

	return bpf_map_lookup_elem(&syn_services, &index);
}

static __always_inline bool is_about(const struct syn_service *service, const struct packet *p, __u32 ifindex)
{
	return service->dst[0] == p->dst[0] && service->dst[1] == p->dst[1] && service->port == p->dst_port &&
	       service->family == p->family && service->ifindex == ifindex;
}

/* A cookie for the segment in work; negative when there is none. */
static __always_inline __s64 make_cookie(struct xdp_md *ctx, struct work *work)
{
	struct segment *s = &work->segment;
	struct bpf_sock *listener;
	__s64 cookie = -1;

	if (has_raw_helpers) {
		__u32 length = s->mss ? sizeof(s->tcp) + sizeof(s->mss_option) : sizeof(s->tcp);

		if (work->packet.family == 4)
			return bpf_tcp_raw_gen_syncookie_ipv4(&s->ipv4, &s->tcp, length);
		return bpf_tcp_raw_gen_syncookie_ipv6(&s->ipv6, &s->tcp, length);
	}
	listener = find_socket(ctx, work);
	if (!listener)
		return -1;
	if (listener->state == BPF_TCP_LISTEN)
		cookie = cookie_of(listener, work);
	bpf_sk_release(listener);
	return cookie;
}

/*
 * Time stamp of an answer: the kernel's own clock in milliseconds, with window scale and SACK in its lowest bits, where
 * cookie_timestamp_decode() finds them. Never ahead of that clock.
 */
static __always_inline __u32 timestamp_of(const struct question *q, bool has_wscale, bool has_sack, __u32 now)
{
	enum { NO_WSCALE = 15, SACK = 16, BITS = 6 };
	__u32 options = (has_wscale ? q->wscale : NO_WSCALE) | (has_sack ? SACK : 0);
	__u32 stamp = (now >> BITS << BITS) | options;

	return stamp > now ? stamp - (1 << BITS) : stamp;
}

/* The checksum of what was added up in words of 32 bits, few enough to stay below 2^48. */
static __always_inline __u16 folded(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Words of a TCP header of an answer, with all options. */
enum { SYN_ACK_WORDS = 10, SYN_ACK_STAMP_WORDS = 9, SYN_ACK_MSS_WORDS = 6, SYN_ACK_BARE_WORDS = 5 };

/* All of an answer but its cookie, as it stands on the wire. Made before the cookie, which takes the longest by far. */
struct plan {
	__u64 sum;		/* of pseudo-header and TCP header, without the cookie */
	__u32 ports, sequence, control;
	__u32 mss, kinds, stamp, scale;
	__u32 first, rest;	/* the first and third word of IPv4, the first two of IPv6 */
	__u32 count;		/* words of the TCP header */
};

/* Plans an answer, whose TCP header is to stand at tcp, within what is there. */
static __always_inline void plan_answer(const __u32 *tcp, const void *data_end, const struct question *q,
					const struct syn_service *service, __u32 milliseconds, struct plan *plan)
{
	bool has_wscale = q->has_wscale && host.window_scaling && (void *)(tcp + SYN_ACK_WORDS) <= data_end;
	bool has_sack = q->has_sack && host.sack, has_stamp = q->has_timestamp && host.timestamps;

	plan->count = SYN_ACK_BARE_WORDS;
	if (has_stamp && (void *)(tcp + SYN_ACK_STAMP_WORDS) <= data_end)
		plan->count = has_wscale ? SYN_ACK_WORDS : SYN_ACK_STAMP_WORDS;
	else if ((void *)(tcp + SYN_ACK_MSS_WORDS) <= data_end)
		plan->count = SYN_ACK_MSS_WORDS;
	plan->ports = (__u32)q->source << 16 | q->dest; /* the other way round: as they stand on the wire */
	plan->sequence = bpf_htonl(bpf_ntohl(q->seq) + 1);
	plan->control = bpf_htonl(plan->count << 28 | (TCP_SYN | TCP_ACK) << 16 | service->window[has_stamp]);
	plan->sum = (__u64)bpf_htonl(plan->count * 4) + bpf_htonl(IPPROTO_TCP) + plan->ports + plan->sequence +
		    plan->control;
	plan->mss = bpf_htonl(0x02040000 | service->mss);
	if (plan->count >= SYN_ACK_MSS_WORDS)
		plan->sum += plan->mss;
	if (plan->count >= SYN_ACK_STAMP_WORDS) {
		plan->kinds = bpf_htonl(has_sack ? 0x0402080a : 0x0101080a);
		plan->stamp = bpf_htonl(timestamp_of(q, has_wscale, has_sack, milliseconds));
		plan->sum += (__u64)plan->kinds + plan->stamp + q->timestamp;
	}
	if (plan->count == SYN_ACK_WORDS) {
		plan->scale = bpf_htonl(0x01030300 | service->wscale);
		plan->sum += plan->scale;
	}
	if (q->family == 4) {
		__u64 addresses = (__u64)q->saddr[0] + q->daddr[0];

		plan->first = bpf_htonl(0x45000000 | (sizeof(struct iphdr) + plan->count * 4));
		plan->rest = bpf_htonl(64 << 24 | IPPROTO_TCP << 16);
		plan->rest |= (__u32)folded(addresses + plan->first + bpf_htonl(0x4000) + plan->rest) << 16;
		plan->sum += addresses;
	} else {
		plan->first = bpf_htonl(0x60000000);
		plan->rest = bpf_htonl(plan->count * 4 << 16 | IPPROTO_TCP << 8 | 64);
#pragma clang loop unroll(full)
		for (__u32 i = 0; i < 4; i++)
			plan->sum += (__u64)q->saddr[i] + q->daddr[i];
	}
}

/* Writes the answer over the SYN, and cuts the rest off. False when the frame is not what it was taken for. */
static __always_inline bool put_answer(struct xdp_md *ctx, void *data, void *data_end, __u32 l3, const struct question *q,
				       const struct plan *plan, __u32 cookie)
{
	__u32 *ip = data + l3, length = q->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr), *tcp;
	__u32 bytes = data_end - data;
	struct ethhdr *ethernet = data;
	__u8 mac[6];

	OPAQUE(ip); /* clang would add it up anew, and the verifier not know the sum */
	tcp = (void *)ip + length;
	if ((void *)(ethernet + 1) > data_end || (void *)(tcp + SYN_ACK_BARE_WORDS) > data_end)
		return false;
	cookie = bpf_htonl(cookie);
	tcp[0] = plan->ports;
	tcp[1] = cookie;
	tcp[2] = plan->sequence;
	tcp[3] = plan->control;
	tcp[4] = folded(plan->sum + cookie); /* the first half of its word on the wire, which is the low one here */
	if (plan->count >= SYN_ACK_MSS_WORDS && (void *)(tcp + SYN_ACK_MSS_WORDS) <= data_end)
		tcp[5] = plan->mss;
	if (plan->count >= SYN_ACK_STAMP_WORDS && (void *)(tcp + SYN_ACK_STAMP_WORDS) <= data_end) {
		tcp[6] = plan->kinds;
		tcp[7] = plan->stamp;
		tcp[8] = q->timestamp;
	}
	if (plan->count == SYN_ACK_WORDS && (void *)(tcp + SYN_ACK_WORDS) <= data_end)
		tcp[9] = plan->scale;
	ip[0] = plan->first;
	if (q->family == 4) {
		ip[1] = bpf_htonl(0x4000);
		ip[2] = plan->rest;
		ip[3] = q->daddr[0];
		ip[4] = q->saddr[0];
	} else {
		ip[1] = plan->rest;
#pragma clang loop unroll(full)
		for (__u32 i = 0; i < 4; i++) {
			ip[2 + i] = q->daddr[i];
			ip[6 + i] = q->saddr[i];
		}
	}
	__builtin_memcpy(mac, ethernet->h_dest, sizeof(mac));
	__builtin_memcpy(ethernet->h_dest, ethernet->h_source, sizeof(mac));
	__builtin_memcpy(ethernet->h_source, mac, sizeof(mac));
	length += l3 + plan->count * 4;
	/* Where that fails, the rest is padding that was the client's own. */
	if (length < bytes)
		bpf_xdp_adjust_tail(ctx, (int)(length - bytes));
	return true;
}

/* Answers the segment in work. False when the frame is not what it was taken for. A function of its own, verified once. */
__noinline int write_answer(struct xdp_md *ctx, struct work *work, const struct syn_service *service, __u32 cookie,
			    __u32 milliseconds)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	__u32 l3, l4;
	const struct segment *s;
	struct plan plan = {};
	struct question *q;

	if (!work || !service)
		return false;
	s = &work->segment;
	q = &work->question; /* the stack has no room for it */
	q->seq = s->tcp.seq;
	q->timestamp = s->timestamp;
	q->source = s->tcp.source;
	q->dest = s->tcp.dest;
	q->family = work->packet.family;
	q->wscale = s->wscale;
	q->has_wscale = s->has_wscale;
	q->has_timestamp = s->has_timestamp;
	q->has_sack = s->has_sack;
	if (q->family == 4) {
		q->saddr[0] = s->ipv4.saddr;
		q->daddr[0] = s->ipv4.daddr;
	} else {
		__builtin_memcpy(q->saddr, s->ipv6.saddr, sizeof(q->saddr));
		__builtin_memcpy(q->daddr, s->ipv6.daddr, sizeof(q->daddr));
	}
	l3 = work->packet.l3_offset & 31;
	l4 = l3 + (q->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	plan_answer(data + l4, data_end, q, service, milliseconds, &plan);
	return put_answer(ctx, data, data_end, l3, q, &plan, cookie);
}

/* Whether a flow may have ended within TCP's TIME_WAIT, or so lately that nobody was watching yet. */
static __always_inline bool may_have_ended(const struct packet *p, const struct syn_order *order)
{
	return order->tick - host.watched_since < ENDED_EPOCHS * SYN_EPOCH_SECS * second ||
	       is_within(ended_flows[flow_cell(p)], order->epoch, ENDED_EPOCHS);
}

static __always_inline bool is_to(const struct ethhdr *ethernet, const struct syn_service *service)
{
	return !((*(__u32 *)ethernet->h_dest ^ *(__u32 *)service->mac) |
		 (*(__u16 *)(ethernet->h_dest + 4) ^ *(__u16 *)(service->mac + 4)));
}

/* Beside enum xdp_action: not answered, and not counted. */
enum { LEFT_OVER = 64 };

/*
 * The common SYN, untagged, without IP options, with the options of Linux or none, to a service that is known: the same
 * as answer_syn() makes of it, without a look at anything twice. All else is left over.
 */
static __always_inline int answer_common_syn(struct xdp_md *ctx, const struct syn_order *order, __u32 family)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct iphdr *ipv4 = data + sizeof(struct ethhdr);
	struct ipv6hdr *ipv6 = (void *)ipv4;
	struct tcphdr *tcp = (void *)ipv4 + (family == 4 ? sizeof(*ipv4) : sizeof(*ipv6));
	__u32 *options = (void *)(tcp + 1), claimed;
	struct question q = { .family = family };
	struct packet p = { .family = family };
	struct plan plan = {};
	__u64 *address = (void *)ipv6->saddr;
	struct syn_service *service;
	__s64 cookie;

	if ((void *)options > data_end)
		return LEFT_OVER;
	if (family == 4) {
		claimed = bpf_ntohs(ipv4->tot_len) - sizeof(*ipv4);
		if (*(__u8 *)ipv4 != 0x45 || ipv4->frag_off & bpf_htons(FRAGMENT_OFFSET_V4 | FRAGMENT_MORE_V4) ||
		    ipv4->protocol != IPPROTO_TCP)
			return LEFT_OVER;
		q.saddr[0] = ipv4->saddr;
		q.daddr[0] = ipv4->daddr;
		p.src[1] = bpf_ntohl(q.saddr[0]);
		p.dst[1] = bpf_ntohl(q.daddr[0]);
	} else {
		claimed = bpf_ntohs(ipv6->payload_len);
		if (ipv6->version != 6 || ipv6->nexthdr != IPPROTO_TCP)
			return LEFT_OVER;
		__builtin_memcpy(q.saddr, ipv6->saddr, sizeof(q.saddr));
		__builtin_memcpy(q.daddr, ipv6->daddr, sizeof(q.daddr));
		p.src[0] = bpf_be64_to_cpu(address[0]);
		p.src[1] = bpf_be64_to_cpu(address[1]);
		p.dst[0] = bpf_be64_to_cpu(address[2]);
		p.dst[1] = bpf_be64_to_cpu(address[3]);
	}
	if (!has_raw_helpers || !is_syn(tcp->flags))
		return LEFT_OVER;
	q.source = tcp->source;
	q.dest = tcp->dest;
	q.seq = tcp->seq;
	p.src_port = bpf_ntohs(q.source);
	p.dst_port = bpf_ntohs(q.dest);
	if (tcp->doff == 10) {
		if (claimed < 40 || (void *)(options + 5) > data_end ||
		    (options[0] & bpf_htonl(0xffff0000)) != bpf_htonl(0x02040000) ||
		    options[1] != bpf_htonl(0x0402080a) ||
		    (options[4] & bpf_htonl(0xffffff00)) != bpf_htonl(0x01030300))
			return LEFT_OVER;
		q.has_wscale = q.has_timestamp = q.has_sack = true;
		q.timestamp = options[2];
		q.wscale = bpf_ntohl(options[4]);
		if (q.wscale > WSCALE_MAX)
			q.wscale = WSCALE_MAX;
	} else if (tcp->doff != 5 || claimed < 20) {
		return LEFT_OVER;
	}
	service = service_at(&p);
	if (!service || !is_about(service, &p, ctx->ingress_ifindex) || (__s32)(service->until - order->tick) <= 0 ||
	    service->state != SYN_LISTENER || !is_to(data, service) || may_have_ended(&p, order))
		return LEFT_OVER;
	if (!may_answer(&p, order)) {
		count_result(SYN_LIMITED);
		return XDP_DROP;
	}
	plan_answer((__u32 *)tcp, data_end, &q, service, order->milliseconds, &plan);
	/* The second half is for the verifier of 6.1, which does not see that it follows from the first. */
	if (q.has_timestamp && (void *)(options + 5) <= data_end)
		cookie = family == 4 ? bpf_tcp_raw_gen_syncookie_ipv4(ipv4, tcp, 40) :
				       bpf_tcp_raw_gen_syncookie_ipv6(ipv6, tcp, 40);
	else
		cookie = family == 4 ? bpf_tcp_raw_gen_syncookie_ipv4(ipv4, tcp, 20) :
				       bpf_tcp_raw_gen_syncookie_ipv6(ipv6, tcp, 20);
	if (cookie < 0 || !put_answer(ctx, data, data_end, sizeof(struct ethhdr), &q, &plan, cookie))
		return LEFT_OVER;
	count_result(SYN_ANSWERED);
	return XDP_TX;
}

/* A SYN that is to be answered. */
static __always_inline int answer_syn(struct xdp_md *ctx, struct work *work, const struct syn_order *order)
{
	struct syn_service *service = service_at(&work->packet);
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	__s64 cookie;

	if (!service || !read_segment(ctx, work))
		return XDP_PASS;
	if (!is_about(service, &work->packet, ctx->ingress_ifindex) || (__s32)(service->until - order->tick) <= 0 ||
	    may_have_ended(&work->packet, order))
		look_at_service(ctx, work, service);
	if (service->state != SYN_LISTENER) {
		count_result(service->state == SYN_NOBODY     ? SYN_NO_LISTENER :
			     service->state == SYN_CONNECTION ? SYN_KNOWN :
								SYN_FULL);
		return service->state == SYN_REFUSED ? XDP_DROP : XDP_PASS;
	}
	if (data + sizeof(struct ethhdr) > data_end || !is_to(data, service)) {
		count_result(SYN_NOT_MINE);
		return XDP_PASS;
	}
	if (!may_answer(&work->packet, order)) {
		count_result(SYN_LIMITED);
		return XDP_DROP;
	}
	cookie = make_cookie(ctx, work);
	if (cookie < 0) {
		count_result(SYN_FULL);
		return XDP_DROP;
	}
	if (!write_answer(ctx, work, service, cookie, order->milliseconds))
		return XDP_PASS;
	count_result(SYN_ANSWERED);
	return XDP_TX;
}

/* Whether an acknowledgement carries a cookie of this host. */
static __always_inline bool has_cookie(struct work *work, struct bpf_sock *listener)
{
	struct segment *s = &work->segment;

	if (!has_raw_helpers) {
		if (work->packet.family == 4)
			return !bpf_tcp_check_syncookie(listener, &s->ipv4, sizeof(s->ipv4), &s->tcp, sizeof(s->tcp));
		return !bpf_tcp_check_syncookie(listener, &s->ipv6, sizeof(s->ipv6), &s->tcp, sizeof(s->tcp));
	}
	if (work->packet.family == 4)
		return !bpf_tcp_raw_check_syncookie_ipv4(&s->ipv4, &s->tcp);
	return !bpf_tcp_raw_check_syncookie_ipv6(&s->ipv6, &s->tcp);
}

/* An acknowledgement while cookies are in use, or the end of a connection. */
static __always_inline int check_ack(struct xdp_md *ctx, struct work *work, const struct syn_order *order)
{
	struct packet *p = &work->packet;
	__u8 now = order->epoch, *cell = &open_flows[flow_cell(p)];
	struct syn_service *service;
	struct bpf_sock *socket;
	bool is_connection, is_good;

	if (p->tcp_flags & TCP_FIN)
		ended_flows[flow_cell(p)] = now;
	if (!order->active)
		return XDP_PASS;
	if (is_within(*cell, now, OPEN_EPOCHS)) {
		if (*cell != now)
			*cell = now;
		return XDP_PASS;
	}
	service = service_at(p);
	if (!service || !is_about(service, p, ctx->ingress_ifindex) || service->state != SYN_LISTENER ||
	    !read_segment(ctx, work))
		return XDP_PASS; /* nobody was answered there */
	socket = find_socket(ctx, work);
	if (!socket)
		return XDP_PASS;
	is_connection = socket->state != BPF_TCP_LISTEN;
	is_good = is_connection || has_cookie(work, socket);
	bpf_sk_release(socket);
	if (!is_good) {
		count_result(SYN_FORGED);
		return XDP_DROP;
	}
	/* What follows may come before the stack has seen this one. */
	*cell = now;
	if (!is_connection)
		count_result(SYN_ACCEPTED);
	return XDP_PASS;
}

/* Any packet, in the whole. */
static __always_inline int judge_packet(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct work *work = bpf_map_lookup_elem(&syn_work, &zero);
	struct syn_order *order = order_now();

	if (!work || !order)
		return XDP_ABORTED; /* they are arrays' first entries */
	if (multi_buffer && bpf_xdp_get_buff_len(ctx) != ctx->data_end - ctx->data)
		return XDP_PASS; /* no SYN and no bare acknowledgement */
	if (!read_packet(ctx, work))
		return XDP_PASS;
	return is_syn(work->packet.tcp_flags) ? answer_syn(ctx, work, order) : check_ack(ctx, work, order);
}

SEC("xdp")
int xdp_syncookie(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct syn_order *order = order_now();
	struct ethhdr *ethernet = data;
	int action = LEFT_OVER;

	if (!order || (void *)(ethernet + 1) > data_end)
		return XDP_ABORTED; /* it is an array's first entry; and no frame is as short */
	if (!multi_buffer && ethernet->h_proto == bpf_htons(ETH_P_IP))
		action = answer_common_syn(ctx, order, 4);
	else if (!multi_buffer && ethernet->h_proto == bpf_htons(ETH_P_IPV6))
		action = answer_common_syn(ctx, order, 6);
	if (action == LEFT_OVER)
		action = judge_packet(ctx);
	if (action == XDP_PASS && steers)
		chain_to(ctx, CHAIN_STEER);
	return action;
}
