// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What `cargo bench --bench firewall` and its siblings run beside the real programs: injectors that write the next of 16,384
 * replayed headers into the packet and jump to the program under test, the programs that it is compared with, and the
 * generator of live frames.
 *
 * A test run has one packet only; without the replay every table and branch would be unrealistically warm. An injector
 * jumps through a constant slot, which the kernel turns into a direct jump that costs nothing measurable.
 */
#include "kernel.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum {
	HEADERS = 16384,	/* replayed headers of a family, 256 KB and 640 KB */
	LINEAR_RULES = 4096,
	CANARY_WORDS = 131072,	/* 1 MB */
	CANARY_READS = 16,
};

/* Addresses, ports and the like as they stand on the wire, so that an injector only copies. */
struct header_v4 {
	__be32 src, dst;
	__be32 transport;	/* the first four bytes: ports, or ICMP type and code */
	__u8 protocol, tcp_flags;
	__u8 pad[2];
};

struct header_v6 {
	__be64 src[2], dst[2];
	__be32 transport;
	__u8 protocol, tcp_flags;
	__u8 pad[2];
};

/* The seed's rule: an entry of an array, compared field by field. */
enum linear_flags { LINEAR_ANY_PROTOCOL = 1, LINEAR_PORTS = 2, LINEAR_ICMP_TYPE = 4, LINEAR_ICMP_CODE = 8, LINEAR_DENY = 16 };
struct linear_match {
	__u16 src_port_low, src_port_high, dst_port_low, dst_port_high;
	__u8 protocol, flags;
	__u8 tcp_set, tcp_mask; /* a mask of 0 looks at nothing */
	__u8 icmp_type, icmp_code;
	__u8 pad[2];
};
struct linear_v4 {
	__u32 src, src_mask, dst, dst_mask;
	struct linear_match match;
};
struct linear_v6 {
	__u64 src[2], src_mask[2], dst[2], dst_mask[2];
	struct linear_match match;
};

/* Every one is mapped into the bench. */
struct header_v4 trace_v4[HEADERS] SEC(".bss.trace_v4");
struct header_v6 trace_v6[HEADERS] SEC(".bss.trace_v6");
__u64 canary_table[CANARY_WORDS] SEC(".bss.canary");

struct bench_control {
	__u64 cursor;		/* next header */
	__u64 sink;
	__u32 linear_rules;
	__u32 default_action;	/* of the linear scan: enum xdp_action */
	__u32 generator_ifindex;
	__u32 random;
	__u32 source_mask;	/* how many sources the injectors of sources invent, less one */
	__u32 pad;
} control SEC(".bss.control");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, LINEAR_RULES);
	__type(key, __u32);
	__type(value, struct linear_v4);
} linear_v4_rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, LINEAR_RULES);
	__type(key, __u32);
	__type(value, struct linear_v6);
} linear_v6_rules SEC(".maps");

/* What the injectors jump to. */
enum target {
	TARGET_DROP = 0,
	TARGET_PARSE = 1,
	TARGET_LINEAR = 2,
	TARGET_FIREWALL = 3,
	TARGET_LIMIT = 4,
	TARGET_LRU = 5,
	TARGETS = 6,
};
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, TARGETS);
	__type(key, __u32);
	__type(value, __u32);
} targets SEC(".maps");

static __always_inline __u64 next_header(void)
{
	__u64 at = control.cursor;

	control.cursor = at + 1;
	return at & (HEADERS - 1);
}

/* Frames are 64 bytes in IPv4 and 80 in IPv6; the bench puts in everything that does not change. */
static __always_inline void inject_v4(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	const struct header_v4 *header;
	struct iphdr *ip = data + 14;

	if (data + 54 > data_end)
		return;
	header = &trace_v4[next_header()];
	ip->saddr = header->src;
	ip->daddr = header->dst;
	ip->protocol = header->protocol;
	*(__be32 *)(data + 34) = header->transport;
	*(__u8 *)(data + 47) = header->tcp_flags;
}

static __always_inline void inject_v6(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	const struct header_v6 *header;
	struct ipv6hdr *ip = data + 14;
	__be64 *addresses = data + 22;

	if (data + 74 > data_end)
		return;
	header = &trace_v6[next_header()];
	addresses[0] = header->src[0];
	addresses[1] = header->src[1];
	addresses[2] = header->dst[0];
	addresses[3] = header->dst[1];
	ip->nexthdr = header->protocol;
	*(__be32 *)(data + 54) = header->transport;
	*(__u8 *)(data + 67) = header->tcp_flags;
}

/* One injector for each target: a slot that changes would need the jump to be patched between two runs. */
#define INJECTORS(name, slot)                                                                                          \
	SEC("xdp") int name##_v4(struct xdp_md *ctx)                                                                   \
	{                                                                                                              \
		inject_v4(ctx);                                                                                        \
		bpf_tail_call(ctx, &targets, slot);                                                                    \
		return XDP_ABORTED;                                                                                    \
	}                                                                                                              \
	SEC("xdp") int name##_v6(struct xdp_md *ctx)                                                                   \
	{                                                                                                              \
		inject_v6(ctx);                                                                                        \
		bpf_tail_call(ctx, &targets, slot);                                                                    \
		return XDP_ABORTED;                                                                                    \
	}
INJECTORS(to_drop, TARGET_DROP)
INJECTORS(to_parse, TARGET_PARSE)
INJECTORS(to_linear, TARGET_LINEAR)
INJECTORS(to_firewall, TARGET_FIREWALL)

/*
 * The same for a firewall that writes metadata, which a test run would leave on the packet from one run to the next. What
 * taking it back costs is counted as the firewall's.
 */
SEC("xdp") int to_chain_v4(struct xdp_md *ctx)
{
	long written = (long)ctx->data - (long)ctx->data_meta;

	if (written)
		bpf_xdp_adjust_meta(ctx, written);
	inject_v4(ctx);
	bpf_tail_call(ctx, &targets, TARGET_FIREWALL);
	return XDP_ABORTED;
}

/* Nothing but the cost of a test run, or on a wire of receiving a packet. */
SEC("xdp") int drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

/* The floor: the product's own parser, and a verdict that needs every field of it. */
SEC("xdp") int parse(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct packet p = {};
	__u64 all;

	if (parse_frame(data, data_end, &p))
		return XDP_ABORTED;
	all = p.src[0] ^ p.src[1] ^ p.dst[0] ^ p.dst[1] ^ p.src_port ^ p.dst_port ^ p.vlan ^ p.family ^ p.protocol ^
	      p.tcp_flags ^ p.icmp_type ^ p.icmp_code ^ p.fragment ^ p.has_ports;
	return all == 0x123456789abcdefULL ? XDP_PASS : XDP_DROP;
}

struct linear_search {
	__u64 src[2], dst[2];
	__u32 found;		/* XDP action, or -1 */
	__u16 src_port, dst_port;
	__u8 protocol, tcp_flags, icmp_type, icmp_code, has_ports, family;
};

static __always_inline bool linear_matches(const struct linear_match *m, const struct linear_search *s)
{
	if (!(m->flags & LINEAR_ANY_PROTOCOL) && m->protocol != s->protocol)
		return false;
	if (m->flags & LINEAR_PORTS &&
	    (!s->has_ports || s->src_port < m->src_port_low || s->src_port > m->src_port_high ||
	     s->dst_port < m->dst_port_low || s->dst_port > m->dst_port_high))
		return false;
	if (m->tcp_mask && (s->protocol != IPPROTO_TCP || (s->tcp_flags & m->tcp_mask) != m->tcp_set))
		return false;
	if (m->flags & LINEAR_ICMP_TYPE &&
	    (s->protocol != (s->family == 4 ? IPPROTO_ICMP : IPPROTO_ICMPV6) || s->icmp_type != m->icmp_type ||
	     (m->flags & LINEAR_ICMP_CODE && s->icmp_code != m->icmp_code)))
		return false;
	return true;
}

static long linear_step_v4(__u32 i, struct linear_search *s)
{
	const struct linear_v4 *rule = bpf_map_lookup_elem(&linear_v4_rules, &i);

	if (!rule)
		return 1;
	if (((__u32)s->src[1] & rule->src_mask) != rule->src || ((__u32)s->dst[1] & rule->dst_mask) != rule->dst ||
	    !linear_matches(&rule->match, s))
		return 0;
	s->found = rule->match.flags & LINEAR_DENY ? XDP_DROP : XDP_PASS;
	return 1;
}

static long linear_step_v6(__u32 i, struct linear_search *s)
{
	const struct linear_v6 *rule = bpf_map_lookup_elem(&linear_v6_rules, &i);

	if (!rule)
		return 1;
	if ((s->src[0] & rule->src_mask[0]) != rule->src[0] || (s->src[1] & rule->src_mask[1]) != rule->src[1] ||
	    (s->dst[0] & rule->dst_mask[0]) != rule->dst[0] || (s->dst[1] & rule->dst_mask[1]) != rule->dst[1] ||
	    !linear_matches(&rule->match, s))
		return 0;
	s->found = rule->match.flags & LINEAR_DENY ? XDP_DROP : XDP_PASS;
	return 1;
}

/* One rule after the other, as the seed does it. Loaded only where bpf_loop exists (5.17). */
SEC("xdp") int linear(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct packet p = {};
	struct linear_search s = { .found = -1 };

	if (parse_frame(data, data_end, &p))
		return XDP_ABORTED;
	s.src[0] = p.src[0];
	s.src[1] = p.src[1];
	s.dst[0] = p.dst[0];
	s.dst[1] = p.dst[1];
	s.src_port = p.src_port;
	s.dst_port = p.dst_port;
	s.protocol = p.protocol;
	s.tcp_flags = p.tcp_flags;
	s.icmp_type = p.icmp_type;
	s.icmp_code = p.icmp_code;
	s.has_ports = p.has_ports;
	s.family = p.family;
	if (p.family == 4)
		bpf_loop(control.linear_rules, linear_step_v4, &s, 0);
	else
		bpf_loop(control.linear_rules, linear_step_v6, &s, 0);
	return s.found == (__u32)-1 ? control.default_action : s.found;
}

/* How busy the shared caches are: 16 random reads of 1 MB. Tables suffer from it, the floor does not. */
SEC("xdp") int canary(struct xdp_md *ctx)
{
	__u32 random = control.random;
	__u64 sum = 0;

#pragma clang loop unroll(full)
	for (int i = 0; i < CANARY_READS; i++) {
		random = random * 1664525 + 1013904223;
		sum += canary_table[random >> 8 & (CANARY_WORDS - 1)];
	}
	control.random = random;
	control.sink = sum;
	return XDP_DROP;
}

/* Live frames: the next header with its checksum, sent out of the veth that the bench names. IPv4. */
SEC("xdp") int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + 14;
	__u16 *word = data + 14;
	__u32 sum = 0;

	if (data + 54 > data_end)
		return XDP_ABORTED;
	inject_v4(ctx);
	ip->check = 0;
#pragma clang loop unroll(full)
	for (int i = 0; i < 10; i++)
		sum += word[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~sum;
	return bpf_redirect(control.generator_ifindex, 0);
}

/* Frames of one of many sources, in no order, all of 10.0.0.0/8. IPv4. */
static __always_inline void inject_source(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + 14;
	__u32 random = control.random * 1664525 + 1013904223;

	if (data + 54 > data_end)
		return;
	control.random = random;
	/* The low bits of this generator are not random; those above are, and go through every value. */
	ip->saddr = bpf_htonl(0x0a000000 | ((random >> 8 ^ random >> 20) & control.source_mask));
}

#define SOURCES(name, slot)                                                                                    \
	SEC("xdp") int name(struct xdp_md *ctx)                                                                        \
	{                                                                                                              \
		inject_source(ctx);                                                                                    \
		bpf_tail_call(ctx, &targets, slot);                                                                    \
		return XDP_ABORTED;                                                                                    \
	}

SOURCES(sources_to_parse, TARGET_PARSE)
SOURCES(sources_to_limit, TARGET_LIMIT)
SOURCES(sources_to_lru, TARGET_LRU)

/*
 * The least that answers a SYN of IPv4 with 20 bytes of options: the kernel makes the cookie, addresses and ports change
 * places, options stay as they are, and nothing is judged, looked up, limited or counted. What of an answer is not ours to
 * make faster. Loaded only where the kernel makes cookies without a listener (6.0+).
 */
SEC("xdp") int syn_floor(struct xdp_md *ctx)
{
	enum { OPTIONS = 20 };
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *ethernet = data;
	struct iphdr *ip = (void *)(ethernet + 1);
	struct tcphdr *tcp = (void *)(ip + 1);
	__u8 mac[6];
	__be32 address, sequence, acknowledged;
	__be16 port;
	__s64 cookie;
	__u64 sum;

	if ((void *)(tcp + 1) + OPTIONS > data_end)
		return XDP_ABORTED;
	cookie = bpf_tcp_raw_gen_syncookie_ipv4(ip, tcp, sizeof(*tcp) + OPTIONS);
	if (cookie < 0)
		return XDP_ABORTED;
	__builtin_memcpy(mac, ethernet->h_dest, sizeof(mac));
	__builtin_memcpy(ethernet->h_dest, ethernet->h_source, sizeof(mac));
	__builtin_memcpy(ethernet->h_source, mac, sizeof(mac));
	address = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = address;
	port = tcp->source;
	tcp->source = tcp->dest;
	tcp->dest = port;
	sequence = bpf_htonl(cookie);
	acknowledged = bpf_htonl(bpf_ntohl(tcp->seq) + 1);
	/* Places that change do not change a sum; in a SYN nothing is acknowledged, which is not looked at here. */
	sum = (__u16)~tcp->check + (__u64)(__u32)~tcp->seq + sequence + acknowledged + bpf_htons(TCP_ACK);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	tcp->check = ~((sum & 0xffff) + (sum >> 16));
	tcp->ack_seq = acknowledged;
	tcp->seq = sequence;
	tcp->flags = TCP_SYN | TCP_ACK;
	return XDP_TX;
}

/* What is mostly written instead of our limiter: a kernel's table for each CPU, and its exact clock. */
struct token_bucket_of_a_cpu {
	__u64 tokens, last_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 1 << 20);
	__type(key, __u32);
	__type(value, struct token_bucket_of_a_cpu);
} lru_percpu_buckets SEC(".maps");

SEC("xdp") int lru_percpu(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct token_bucket_of_a_cpu *bucket, full = { .tokens = 2000 };
	__u64 now = bpf_ktime_get_ns(), more;
	struct packet p = {};
	__u32 key;

	if (parse_frame(data, data_end, &p))
		return XDP_ABORTED;
	key = p.src[1];
	bucket = bpf_map_lookup_elem(&lru_percpu_buckets, &key);
	if (!bucket) {
		full.last_ns = now;
		bpf_map_update_elem(&lru_percpu_buckets, &key, &full, BPF_ANY);
		return XDP_DROP;
	}
	more = (now - bucket->last_ns) / 1000000; /* 1000 a second */
	if (more) {
		bucket->tokens = bucket->tokens + more > 2000 ? 2000 : bucket->tokens + more;
		bucket->last_ns = now;
	}
	if (bucket->tokens)
		bucket->tokens--;
	return XDP_DROP;
}

/* What the injectors of TC jump to. */
enum tc_target { TC_TARGET_PARSE = 0, TC_TARGET_IDS = 1, TC_TARGETS = 2 };
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, TC_TARGETS);
	__type(key, __u32);
	__type(value, __u32);
} tc_targets SEC(".maps");

/* The floor of TC: as `parse`. */
SEC("tc") int tc_parse(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct packet p = {};
	__u64 all;

	if (parse_frame(data, data_end, &p))
		return TCX_DROP;
	all = p.src[0] ^ p.src[1] ^ p.dst[0] ^ p.dst[1] ^ p.src_port ^ p.dst_port ^ p.vlan ^ p.family ^ p.protocol ^
	      p.tcp_flags ^ p.icmp_type ^ p.icmp_code ^ p.fragment ^ p.has_ports;
	return all == 0x123456789abcdefULL ? TCX_DROP : TCX_NEXT;
}

/* Frames of one of many sources, as inject_source() makes them. */
#define TC_SOURCES(name, slot)                                                                                         \
	SEC("tc") int name(struct __sk_buff *skb)                                                                      \
	{                                                                                                              \
		void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;                         \
		struct iphdr *ip = data + 14;                                                                          \
		__u32 random = control.random * 1664525 + 1013904223;                                                  \
                                                                                                                       \
		if (data + 54 > data_end)                                                                              \
			return TCX_DROP;                                                                               \
		control.random = random;                                                                               \
		ip->saddr = bpf_htonl(0x0a000000 | ((random >> 8 ^ random >> 20) & control.source_mask));              \
		bpf_tail_call(skb, &tc_targets, slot);                                                                 \
		return TCX_DROP;                                                                                       \
	}

TC_SOURCES(tc_many_to_parse, TC_TARGET_PARSE)
TC_SOURCES(tc_many_to_ids, TC_TARGET_IDS)
