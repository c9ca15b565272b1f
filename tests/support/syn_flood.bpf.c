// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * What a bench and an end-to-end test of SYN cookies put at the attacker's end of a link: a generator of SYNs from random
 * sources (live frames of BPF_PROG_TEST_RUN), and a counter of what comes back to them, which answers nobody. Beside it
 * what stands for a VLAN interface, which not every kernel has.
 */
#include "kernel.h"
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

enum {
	TEMPLATE_MAX = 128,
	SAMPLES = 1024,
	CPUS = 64,
	BATCH = 64,
	WAITS_MAX = 20000,	/* looks at the clock: about half a millisecond */
	SYN_AND_ACK = 0x12,
	RST = 0x04,
};

/* A TCP header without its options. */
struct tcp_start {
	__be16 source, dest;
	__be32 seq, ack_seq;
	__u8 data_offset, flags;
	__be16 window, check, urgent;
};

/* The SYN as it is sent, but for source, source port and sequence number, which are zero here and in its checksums. */
struct syn_control {
	__u8 template[TEMPLATE_MAX];
	__u64 random;
	__u32 length;		/* of the template, 54 or more */
	__u32 l3;		/* where its IP header begins */
	__u32 ipv6;
	__u32 ifindex;
	__u32 source_mask;	/* how many sources there are, less one */
	__u32 samples_wanted;	/* SYN-ACKs to be kept whole */
	__u64 batch_ns;		/* time between two batches; 0: as fast as it goes */
	__u64 next_ns;		/* when the next one is due */
	__u64 sent;		/* SYNs of the flood */
	__u64 replayed;
} control SEC(".bss.control");

/* Ends a flood before all is sent: the rest goes nowhere, and at once. */
__u32 stopped SEC(".bss.stopped");

/* What came back to the sources of the flood. */
struct answer_counts {
	__u64 syn_acks, syn_ack_bytes, resets, others;
	__u64 longest;		/* bytes of a SYN-ACK's frame */
	__u64 pad[3];		/* a cache line for each CPU */
} counts[CPUS] SEC(".bss.counts");

struct answer_sample {
	__u32 length;
	__u8 frame[TEMPLATE_MAX - 4];	/* of an even length */
} samples[SAMPLES] SEC(".bss.samples");

__u32 samples_taken SEC(".bss.taken");

static __always_inline __u16 add_to_checksum(__u16 check, __u32 added)
{
	__u32 sum = (__u16)~check + added;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static __always_inline __u32 halves(__u32 word)
{
	return (word & 0xffff) + (word >> 16);
}

/* Writes the next SYN over the whole frame, which an earlier round may have turned into its answer. */
static __always_inline int write_syn(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	__u32 l3 = control.l3 & 31, last = (control.length - 8) & (TEMPLATE_MAX - 1), source, sequence, added;
	__u64 random = control.random * 6364136223846793005ULL + 1442695040888963407ULL;
	__u16 port;

	control.random = random;
#pragma clang loop unroll(full)
	for (int at = 0; at + 8 <= TEMPLATE_MAX; at += 8) {
		if (data + at + 8 > data_end)
			break;
		*(__u64 *)(data + at) = *(__u64 *)(control.template + at);
	}
	if (last > TEMPLATE_MAX - 8 || data + last + 8 > data_end)
		return -1;
	*(__u64 *)(data + last) = *(__u64 *)(control.template + last);
	/* Low bits of this generator are not random. */
	source = bpf_htonl(random >> 36 & control.source_mask);
	sequence = random >> 20;
	port = bpf_htons(1024 + (random >> 40 & 0x7fff));
	added = halves(source) + halves(sequence) + port;
	if (control.ipv6) {
		struct ipv6hdr *ip = data + l3;
		struct tcp_start *tcp = (void *)(ip + 1);

		if ((void *)(tcp + 1) > data_end)
			return -1;
		/* In the network's half as well: limits go by that. */
		ip->saddr[1] = source;
		ip->saddr[3] |= source;
		tcp->source = port;
		tcp->seq = sequence;
		tcp->check = add_to_checksum(tcp->check, added + halves(source));
	} else {
		struct iphdr *ip = data + l3;
		struct tcp_start *tcp = (void *)(ip + 1);

		if ((void *)(tcp + 1) > data_end)
			return -1;
		ip->saddr |= source;
		ip->check = add_to_checksum(ip->check, halves(source));
		tcp->source = port;
		tcp->seq = sequence;
		tcp->check = add_to_checksum(tcp->check, added);
	}
	return 0;
}

static long is_due(__u32 turn, __u64 *due)
{
	return bpf_ktime_get_ns() >= *due;
}

/* Before the first frame of a batch. A test run is far too long in its beginning and end to be a batch by itself. */
static __always_inline void wait_for_batch(void)
{
	__u64 now = bpf_ktime_get_ns(), due = control.next_ns;

	/* What a busy machine has missed is not made up for: it would fill the receiver's queue at once. */
	if (due + 2 * control.batch_ns < now)
		due = now;
	control.next_ns = due + control.batch_ns;
	bpf_loop(WAITS_MAX, is_due, &due, 0);
}

/* Live frames: sends the next SYN. */
SEC("xdp") int flood(struct xdp_md *ctx)
{
	if (*(volatile __u32 *)&stopped)
		return XDP_DROP;
	if (!(control.sent++ & (BATCH - 1)) && control.batch_ns)
		wait_for_batch();
	if (write_syn(ctx))
		return XDP_ABORTED;
	return bpf_redirect(control.ifindex, 0);
}

/* Test runs: gives the next SYN to a program, each through a slot that does not change (see benches/bench.bpf.c). */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} targets SEC(".maps");

SEC("xdp") int syn_to_floor(struct xdp_md *ctx)
{
	if (!write_syn(ctx))
		bpf_tail_call(ctx, &targets, 0);
	return XDP_ABORTED;
}

SEC("xdp") int syn_to_tested(struct xdp_md *ctx)
{
	if (!write_syn(ctx))
		bpf_tail_call(ctx, &targets, 1);
	return XDP_ABORTED;
}

static __always_inline void keep(void *frame, void *data_end, __u32 length)
{
	struct answer_sample *sample;
	__u32 at;

	if (samples_taken >= control.samples_wanted)
		return;
	at = __sync_fetch_and_add(&samples_taken, 1);
	if (at >= SAMPLES)
		return;
	sample = &samples[at];
	for (int i = 0; i < (int)sizeof(sample->frame) / 2; i++) {
		if (frame + 2 * i + 2 > data_end)
			break;
		*(__u16 *)(sample->frame + 2 * i) = *(__u16 *)(frame + 2 * i);
	}
	sample->length = length;
}

/* Live frames: sends the next of the samples, which the user has written. */
SEC("xdp") int replay(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	const struct answer_sample *sample = &samples[control.replayed++ & (SAMPLES - 1)];

	for (int i = 0; i < (int)sizeof(sample->frame) / 2; i++) {
		if (data + 2 * i + 2 > data_end)
			break;
		*(__u16 *)(data + 2 * i) = *(__u16 *)(sample->frame + 2 * i);
	}
	return bpf_redirect(control.ifindex, 0);
}

/* Counts and drops what goes to a source of the flood, which is of 10.0.0.0/8 or fd00::/8, and passes everything else. */
SEC("xdp") int answers(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end, *ip = data + 14;
	__be16 kind;
	struct answer_counts *count = &counts[bpf_get_smp_processor_id() & (CPUS - 1)];
	struct tcp_start *tcp;
	__u64 length = data_end - data;
	__u8 flags;

	if (ip + 24 > data_end)
		return XDP_PASS;
	kind = *(__be16 *)(data + 12);
	if (kind == bpf_htons(0x8100)) {
		kind = *(__be16 *)(data + 16);
		ip += 4;
	}
	if (ip + 40 > data_end)
		return XDP_PASS;
	if (kind == bpf_htons(0x0800) && *(__u8 *)(ip + 16) == 10)
		tcp = ip + 20;
	else if (kind == bpf_htons(0x86dd) && *(__u8 *)(ip + 24) == 0xfd)
		tcp = ip + 40;
	else
		return XDP_PASS;
	if ((void *)(tcp + 1) > data_end) {
		count->others++;
		return XDP_DROP;
	}
	flags = tcp->flags;
	if ((flags & SYN_AND_ACK) == SYN_AND_ACK) {
		count->syn_acks++;
		count->syn_ack_bytes += length;
		if (length > count->longest)
			count->longest = length;
		keep(data, data_end, length);
	} else if (flags & RST) {
		count->resets++;
	} else {
		count->others++;
	}
	return XDP_DROP;
}

/* Sends a SYN of IPv4 back as a SYN-ACK, with nothing in it that would cost something: what XDP_TX itself costs. */
SEC("xdp") int bounce(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + 14;
	struct tcp_start *tcp = (void *)(ip + 1);
	__be32 source;

	if ((void *)(tcp + 1) > data_end)
		return XDP_PASS;
	source = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = source;
	tcp->flags = SYN_AND_ACK;
	return XDP_TX;
}

/* Both ends of a VLAN, behind XDP on the way in and before the wire on the way out. */
enum { VLAN_ID = 7 };

SEC("tc") int tag(struct __sk_buff *skb)
{
	bpf_skb_vlan_push(skb, bpf_htons(0x8100), VLAN_ID);
	return -1; /* whatever comes next */
}

SEC("tc") int untag(struct __sk_buff *skb)
{
	if (skb->vlan_present && (skb->vlan_tci & 0xfff) == VLAN_ID)
		bpf_skb_vlan_pop(skb);
	return -1;
}
