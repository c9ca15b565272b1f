// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Copies what flows say to the agent, both directions, as far as their budgets go (include/flow_budget.h), and drops
 * what the agent has blocked (include/verdicts.h). Never changes a packet, but may bring headers into its linear
 * part; drops nothing else, and always lets the next program run.
 *
 * A packet past its flow's budget costs the reading of its headers and one entry of a table. Everything else is
 * recorded in whole by a function of its own.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"
#include "common_packet.h"
#include "flow_budget.h"
#include "sampling.h"
#include "l7.h"
#include "verdicts.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Always 0, which the verifier cannot know; see forget_path(). */
volatile __u32 nothing;

/* Size of the ring buffer. */
const volatile __u64 ring_bytes;

/* The kernel tells TC programs a packet's cgroup, and how many CPUs may ever be there. */
const volatile __u8 has_cgroups;
const volatile __u32 scratch_cpus = 1;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 * 1024 * 1024); /* set by the agent */
} ids_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ids_counts);
} ids_counts SEC(".maps");

/* By CPU; the agent makes room for all. Neither hook interrupts the other one: both run with softirqs held back. */
struct ids_scratch scratch[1] SEC(".bss.scratch");

/* Enough for Ethernet, a tag, IPv6, some extension headers and TCP with options; asking for more than there is fails. */
enum { HEADERS_MAX = 192, ETHERNET_BYTES = 14 };

static __always_inline struct ids_count *count_of(__u32 direction)
{
	__u32 zero = 0;
	struct ids_counts *counts = bpf_map_lookup_elem(&ids_counts, &zero);

	return counts ? &counts->direction[direction & 1] : NULL;
}

static __always_inline __u16 vlan_of(const struct __sk_buff *skb)
{
	return skb->vlan_present ? skb->vlan_tci & VLAN_ID_MASK : 0;
}

static __always_inline __u32 tick_of(const struct __sk_buff *skb)
{
	return replaying ? skb->tstamp >> IDS_REPLAY_TICK_SHIFT : bpf_jiffies64();
}

/* TCP's or UDP's part of a common packet, of which claimed bytes from l4 on belong to the packet. */
static __always_inline bool read_common_transport(const __u8 *l4, void *data_end, __u32 l4_offset, __u32 protocol,
						  __u32 claimed, bool ipv6, struct seen *p)
{
	__u32 header = 8, kind = IDS_UDP;

	if (protocol == IPPROTO_TCP) {
		if (l4 + 20 > (__u8 *)data_end)
			return false;
		header = l4[12] >> 4 << 2;
		kind = IDS_TCP;
		if (header < 20)
			return false;
		p->tcp_flags = l4[13];
		p->budget = BUDGET_BYTES;
	} else if (protocol == IPPROTO_UDP) {
		if (((__be16 *)l4)[1] == bpf_htons(IDS_VXLAN_PORT))
			return false;
		p->budget = BUDGET_PACKETS;
	} else {
		return false;
	}
	if (claimed < header)
		return false;
	p->headers = l4_offset + header;
	p->payload = claimed - header;
	key_of(p, ipv6, kind, *(__u32 *)l4, p->vlan, 0);
	return true;
}

/* A common packet: without tags in the frame, whole, without IP options, TCP or UDP. False when it is not one. */
static __always_inline bool read_common(const struct __sk_buff *skb, struct seen *p)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct iphdr *ip = data + 14;
	struct ipv6hdr *ip6 = data + 14;
	__u64 *address = data + 22;
	__u32 total;

	if (data + 42 > data_end)
		return false;
	if (*(__be16 *)(data + 12) == bpf_htons(ETH_P_IP)) {
		total = bpf_ntohs(ip->tot_len);
		if (*(__u8 *)ip != 0x45 || ip->frag_off & bpf_htons(FRAGMENT_OFFSET_V4 | FRAGMENT_MORE_V4) || total < 20)
			return false;
		p->src[0] = ip->saddr;
		p->dst[0] = ip->daddr;
		return read_common_transport(data + 34, data_end, 34, ip->protocol, total - 20, false, p);
	}
	if (*(__be16 *)(data + 12) != bpf_htons(ETH_P_IPV6) || data + 62 > data_end || ip6->version != 6)
		return false;
	p->src[0] = address[0];
	p->src[1] = address[1];
	p->dst[0] = address[2];
	p->dst[1] = address[3];
	return read_common_transport(data + 54, data_end, 54, ip6->nexthdr, bpf_ntohs(ip6->payload_len), true, p);
}

/* The whole parser, over headers that are in the linear part; packet must be zero. */
static __always_inline int parse_skb(struct __sk_buff *skb, struct packet *packet)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	__u32 headers = skb->len < HEADERS_MAX ? skb->len : HEADERS_MAX;
	int why;

	if (data + headers > data_end) {
		bpf_skb_pull_data(skb, headers); /* when it fails, the parser sees what there is */
		data = (void *)(long)skb->data;
		data_end = (void *)(long)skb->data_end;
	}
	why = parse_frame(data, data_end, packet) + packet->nothing;
	forget_path(packet);
	return why;
}

/* Whether a packet carries packets, whose flows nobody has counted. */
static __always_inline bool is_tunnel(const struct packet *packet)
{
	enum { IN_IPV4 = 4, IN_IPV6 = 41, GRE = 47 };

	return packet->protocol == IN_IPV4 || packet->protocol == IN_IPV6 || packet->protocol == GRE ||
	       (packet->protocol == IPPROTO_UDP && packet->dst_port == IDS_VXLAN_PORT);
}

/* The rest of what is known of a packet that was parsed. */
static __always_inline void see(const struct __sk_buff *skb, const struct packet *packet, struct seen *p)
{
	enum { OFFSET_MASK = 0x7fff, TWO_TAGS = 22 };
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	bool ipv6 = packet->family == 6;
	__u32 l4 = packet->l4_offset & OFFSET_MASK, claimed = 0, ports, kind = IDS_OTHER;
	__u64 outer = p->vlan, inner = packet->vlan;

	if (!outer) {
		outer = inner;
		inner = 0;
		if (packet->l3_offset == TWO_TAGS && data + TWO_TAGS <= data_end)
			inner = bpf_ntohs(*(__be16 *)(data + 18)) & VLAN_ID_MASK;
	}
	if (ipv6) {
		p->src[0] = bpf_cpu_to_be64(packet->src[0]);
		p->src[1] = bpf_cpu_to_be64(packet->src[1]);
		p->dst[0] = bpf_cpu_to_be64(packet->dst[0]);
		p->dst[1] = bpf_cpu_to_be64(packet->dst[1]);
	} else {
		p->src[0] = bpf_htonl(packet->src[1]);
		p->dst[0] = bpf_htonl(packet->dst[1]);
		p->src[1] = p->dst[1] = 0;
	}
	p->headers = l4;
	p->payload = 0;
	p->tcp_flags = packet->tcp_flags;
	p->budget = BUDGET_PACKETS;
	ports = packet->protocol;
	if (packet->fragment) {
		ports |= IDS_OF_FRAGMENTS;
		p->budget = BUDGET_NONE;
		p->tcp_flags = 0;
	} else if (packet->protocol == IPPROTO_TCP || packet->protocol == IPPROTO_UDP) {
		__u8 *tcp = data + l4;
		__u32 header = 8, l3 = packet->l3_offset & 31;

		if (ipv6 && data + l3 + 6 <= data_end)
			claimed = bpf_ntohs(*(__be16 *)(data + l3 + 4)) + l3 + 40 - l4;
		else if (!ipv6 && data + l3 + 4 <= data_end)
			claimed = bpf_ntohs(*(__be16 *)(data + l3 + 2)) + l3 - l4;
		kind = IDS_UDP;
		if (packet->protocol == IPPROTO_TCP) {
			kind = IDS_TCP;
			p->budget = BUDGET_BYTES;
			if ((void *)(tcp + 13) <= data_end)
				header = tcp[12] >> 4 << 2;
		}
		ports = bpf_htons(packet->src_port) | (__u32)bpf_htons(packet->dst_port) << 16;
		p->headers = l4 + header;
		p->payload = claimed > header ? claimed - header : 0;
	}
	if (is_tunnel(packet))
		p->budget = BUDGET_NONE;
	key_of(p, ipv6, kind, ports, outer, inner);
}

enum { NOT_IP = 0, READ = 1, UNPARSABLE = 2 };

/* Any packet; what of IP cannot be parsed belongs to no flow. A function of its own, verified once. */
__noinline int read_any(struct __sk_buff *skb, struct seen *p)
{
	struct packet packet = { .nothing = nothing };
	int why = parse_skb(skb, &packet);

	if (!p)
		return NOT_IP;
	p->budget = BUDGET_NONE;
	p->tcp_flags = 0;
	p->word = 0;
	p->src[0] = p->src[1] = p->dst[0] = p->dst[1] = 0;
	if (why == FW_NOT_IP || why == FW_SHORT_ETHERNET)
		return NOT_IP;
	see(skb, &packet, p);
	if (!why)
		return READ;
	p->word = 0;
	p->budget = BUDGET_NONE;
	p->tcp_flags = 0;
	return UNPARSABLE;
}

/*
 * A reset that carries nothing, on its way out: it passes the block of its flow, so that the agent (and whoever else
 * ends the flow) is heard by the end that is not this host.
 */
static __always_inline bool is_parting_reset(const struct seen *p, __u32 direction)
{
	return direction == IDS_EGRESS && p->tcp_flags & TCP_RST && !p->payload;
}

/* What blocks a packet, as find_block() tells it. Reads the packet anew: most hosts block nothing. */
__noinline int find_skb_block(struct __sk_buff *skb, __u32 how)
{
	struct packet packet = { .nothing = nothing };
	__u16 vlan = vlan_of(skb);

	parse_skb(skb, &packet);
	if (vlan)
		packet.vlan = vlan;
	return find_block(&packet, how);
}

/* A packet that should be recorded is not. */
static __always_inline int lose(struct ids_entry *entry, struct ids_count *count, __u32 bytes, enum ids_loss why)
{
	count->lost[why]++;
	leave_unseen(entry, bytes);
	entry->flags |= IDS_ENTRY_LOST;
	return 0;
}

/* Looks at the first payload of a direction; no signature is shorter than four bytes. */
enum { SIGNATURE_MIN = 4 };
static __always_inline void read_signature(struct __sk_buff *skb, const struct seen *p, struct ids_scratch *s,
					   struct ids_entry *entry)
{
	__u64 bytes = p->payload < IDS_HEAD ? p->payload : IDS_HEAD;

	entry->flags |= IDS_ENTRY_READ;
	__builtin_memset(s->head, 0, sizeof(s->head));
	OPAQUE(bytes); /* as in record_packet() */
	if (bytes < SIGNATURE_MIN)
		return;
	OPAQUE(bytes);
	if (bytes > IDS_HEAD || bpf_skb_load_bytes(skb, p->headers, s->head, bytes))
		return;
	entry->signature = signature_of((const struct payload_head *)s->head, p->payload);
}

/* Of a packet's socket, where it has one already: what leaves, and what was forwarded to one by early demultiplexing. */
static __always_inline void note_socket(struct __sk_buff *skb, __u32 direction, struct ids_record *record)
{
	record->socket_cookie = bpf_get_socket_cookie(skb);
	record->cgroup_id = has_cgroups && direction == IDS_EGRESS ? bpf_skb_cgroup_id(skb) : 0;
}

/*
 * Records a packet, if it is to be and there is room. Its result means nothing. A function of its own: a packet past
 * its budget does not pay for it.
 */
__noinline int record_packet(struct __sk_buff *skb, struct seen *p, __u32 direction)
{
	__u64 cpu = bpf_get_smp_processor_id(), copied, queued, unseen_packets, unseen_bytes;
	struct ids_count *count = count_of(direction);
	struct ids_scratch *s = scratch;
	struct ids_entry *entry;
	struct ids_record *record;
	struct ids_back *back;
	__u32 length = skb->len, ifindex = skb->ifindex;
	__u64 stamp = replaying ? skb->tstamp : 0;
	bool whole;
	__u8 flags = 0;

	OPAQUE(s); /* clang believes that there is one */
	if (!p || !count || cpu >= scratch_cpus)
		return 0;
	s += cpu;
	entry = &s->no_entry;
	back = &s->no_back;
	if (p->word && p->at == (__u64)IDS_NO_ENTRY)
		p->at = make_entry(p, count);
	if (p->word && p->at != (__u64)IDS_NO_ENTRY) {
		entry = entry_at(p->at);
		back = back_at(p->at);
	} else {
		__builtin_memset(entry, 0, sizeof(*entry));
		__builtin_memset(back, 0, sizeof(*back));
	}
	restart(entry, p);
	whole = !is_past(entry, p);
	entry->last_tick = p->tick;
	entry->place = ifindex | direction << 31;
	if (!whole && !is_told(entry, p)) {
		count->past_budget++;
		leave_unseen(entry, length);
		return 0;
	}
	copied = length;
	if (!whole) {
		flags |= IDS_HEADERS;
		copied = p->headers < length ? p->headers : length;
	}
	if (copied > IDS_FRAME_MAX) {
		flags |= IDS_TRUNCATED;
		copied = IDS_FRAME_MAX;
	}
	/*
	 * How full the ring is stands where the poller writes after every record: so only those ask for whom it matters, new
	 * flows, and whoever comes after one that found no room, for whom asking is cheaper than to try.
	 */
	if (!back->told_packets || s->is_full) {
		queued = bpf_ringbuf_query(&ids_events, BPF_RB_AVAIL_DATA);
		if (queued > ring_bytes / 4 * 3 && !back->told_packets)
			return lose(entry, count, length, IDS_PRESSURE);
		s->is_full = queued + sizeof(*record) + copied + 16 > ring_bytes;
		if (s->is_full)
			return lose(entry, count, length, IDS_RING_FULL);
	}
	/* One bound after the other, each on its own: Linux 6.1 understands no other way to say that there is something. */
	OPAQUE(copied);
	if (copied < ETHERNET_BYTES)
		return lose(entry, count, length, IDS_UNREADABLE);
	OPAQUE(copied);
	if (copied > IDS_FRAME_MAX || bpf_skb_load_bytes(skb, 0, s->frame, copied))
		return lose(entry, count, length, IDS_UNREADABLE);
	if (whole && p->budget == BUDGET_BYTES && p->payload && !(entry->flags & IDS_ENTRY_READ))
		read_signature(skb, p, s, entry);
	if (entry->flags & IDS_ENTRY_LOST)
		flags |= IDS_LOST;
	if (!p->word)
		flags |= IDS_NO_FLOW;
	/* Mostly there are none, and an exchange costs what ten other instructions do. */
	unseen_packets = *(volatile __u64 *)&entry->unseen_packets;
	unseen_bytes = 0;
	if (unseen_packets) {
		unseen_packets = __sync_lock_test_and_set(&entry->unseen_packets, 0);
		unseen_bytes = __sync_lock_test_and_set(&entry->unseen_bytes, 0);
	}
	record = &s->record;
	record->boot_ns = replaying ? stamp : bpf_ktime_get_boot_ns();
	note_socket(skb, direction, record);
	record->unseen_packets = unseen_packets;
	record->unseen_bytes = unseen_bytes;
	record->ifindex = ifindex;
	record->pair = pair_hash(p);
	record->length = length;
	record->copied = copied;
	record->vlan = p->vlan;
	record->direction = direction;
	record->signature = entry->signature;
	record->flags = flags;
	__builtin_memset(record->pad, 0, sizeof(record->pad));
	/* The agent looks every millisecond, so no record wakes it. */
	if (bpf_ringbuf_output(&ids_events, s, sizeof(*record) + copied, BPF_RB_NO_WAKEUP)) {
		__sync_fetch_and_add(&entry->unseen_packets, unseen_packets);
		__sync_fetch_and_add(&entry->unseen_bytes, unseen_bytes);
		s->is_full = true;
		return lose(entry, count, length, IDS_RING_FULL);
	}
	entry->flags &= ~IDS_ENTRY_LOST;
	entry->told_tick = p->tick;
	__sync_fetch_and_add(&back->told_packets, unseen_packets + 1);
	__sync_fetch_and_add(&back->told_bytes, unseen_bytes + length);
	if (whole)
		spend(entry, p);
	count->records++;
	count->copied_bytes += copied;
	count->truncated += !!(flags & IDS_TRUNCATED);
	count->no_flow += !!(flags & IDS_NO_FLOW);
	return 0;
}

/* Whether a packet that leaves was looked at when it arrived. */
static __always_inline bool is_seen_twice(const struct __sk_buff *skb, const struct ids_entry *entry)
{
	return skb->ingress_ifindex && entry->place == skb->ingress_ifindex;
}

/* Drops a blocked packet. */
static __always_inline int drop_blocked(struct ids_count *count, int why)
{
	if (why == FW_BY_BLOCKED_FLOW)
		count->blocked_flow++;
	else
		count->blocked_address++;
	return TCX_DROP;
}

static __always_inline int inspect(struct __sk_buff *skb, __u32 direction)
{
	struct ids_count *count = count_of(direction);
	struct seen p = { .vlan = vlan_of(skb), .at = IDS_NO_ENTRY };
	struct ids_entry *entry;

	if (!count)
		return TCX_NEXT; /* it is an array's first entry */
	if (!read_common(skb, &p) && read_any(skb, &p) == NOT_IP)
		return TCX_NEXT;
	count->packets++;
	count->bytes += skb->len;
	if (blocks_anything()) {
		__u32 how = direction == IDS_EGRESS ? BLOCK_EGRESS : 0;
		int why;

		if (is_parting_reset(&p, direction))
			how |= BLOCK_ADDRESSES;
		why = find_skb_block(skb, how);
		if (why)
			return drop_blocked(count, why);
	}
	if (sampling && is_sampled_out(&p)) {
		count->sampled_out++;
		return TCX_NEXT;
	}
	p.tick = tick_of(skb);
	if (p.word)
		p.at = find_entry(&p);
	if (p.at != (__u64)IDS_NO_ENTRY) {
		entry = entry_at(p.at);
		if (direction == IDS_EGRESS && is_seen_twice(skb, entry)) {
			count->twice++;
			return TCX_NEXT;
		}
		if (is_past(entry, &p) && !is_told(entry, &p)) {
			count->past_budget++;
			entry->last_tick = p.tick;
			leave_unseen(entry, skb->len);
			return TCX_NEXT;
		}
	}
	record_packet(skb, &p, direction);
	return TCX_NEXT;
}

SEC("tc")
int tc_ids_ingress(struct __sk_buff *skb)
{
	return inspect(skb, IDS_INGRESS);
}

SEC("tc")
int tc_ids_egress(struct __sk_buff *skb)
{
	return inspect(skb, IDS_EGRESS);
}
