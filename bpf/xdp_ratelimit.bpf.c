// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The rate limiter: runs behind xdp_firewall for what that one passes. Finds the rule as the firewall does, by tables of
 * its own, and charges the packet to a bucket that all CPUs share.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"
#include "common_packet.h"
#include "classify.h"
#include "policy.h"
#include "bucket_table.h"
#include "chain.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Mapped into the agent, which swaps generations by one store. */
struct fw_control control SEC(".bss.control");

/* What belongs to each generation of the tables. */
struct rl_rules rules[2] SEC(".bss.rules");

/* A frame may stand in several buffers (jumbo frames): then its length takes a helper to find out. */
const volatile __u8 multi_buffer;

/* Nanoseconds of a tick. Ticks and nanoseconds are one clock, told more or less exactly. */
const volatile __u64 tick_ns = 1000000;
struct rl_host host SEC(".bss.host");

/* Ticks between two records of one bucket. */
const volatile __u32 tell_interval = 1;

/* How many CPUs may ever be there. The agent makes room for the counters of all before it loads the program. */
const volatile __u32 count_cpus = 1;
struct rl_cpu_counts cpu_counts[1] SEC(".bss.counts");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1024 * 1024);
} rl_events SEC(".maps");

/* What a packet is worked on, by CPU; see xdp_firewall. */
struct work {
	struct packet packet;
	struct classes classes;
	struct rl_bucket of;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct work);
} rl_work SEC(".maps");

/* Counters of a CPU, which is below count_cpus. */
static __always_inline struct rl_cpu_counts *counts_of(__u64 cpu)
{
	struct rl_cpu_counts *counts = cpu_counts;

	OPAQUE(counts); /* clang believes that there is one */
	return counts + cpu;
}

/* Reads any packet; false when no limit is meant for it. A function of its own, verified once. */
__noinline int read_packet(struct xdp_md *ctx, struct packet *out)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct packet p = { .nothing = *(volatile __u32 *)&control.nothing };
	int why = parse_frame(data, data_end, &p);

	if (!out)
		return false;
	*out = p;
	/* What cannot be parsed has met the firewall's policy already. A host that forgets its neighbours is off its link. */
	return !why && !is_neighbour_discovery(&p);
}

/* The answer of the rules to a packet: enum fw_answer. */
static __always_inline __u32 find_rule(struct fw_tables *t, const struct rl_rules *r, __u32 index, __u32 ifindex,
				       struct work *work)
{
	const struct packet *p = &work->packet;
	__u32 six = p->family == 6;
	struct fw_family *f = &t->family[six];
	struct classes *c = &work->classes;

	if (!r->ask[six])
		return r->any[six];
	if (f->mode == FW_MODE_EMPTY)
		return FW_NO_MATCH;
	if (six) {
		c->src_row = lookup_ipv6(&t->v6, 0, p->src[0], p->src[1]);
		c->dst_row = lookup_ipv6(&t->v6, 1, p->dst[0], p->dst[1]);
	} else {
		c->src_row = lookup_ipv4(&t->v4, 0, p->src[1]);
		c->dst_row = lookup_ipv4(&t->v4, 1, p->dst[1]);
	}
	find_classes(f, p, iface_number(&t->policy, ifindex), c);
	return classify(f, c, index, 0);
}

/* An address as a key, the first bits of it. */
static __always_inline void key_of(__u64 key[2], const __u64 address[2], const struct packet *p, __u32 bits)
{
	__u64 low = bits > 64 ? ~0ULL << ((128 - bits) & 63) : 0, high = ~0ULL << ((64 - bits) & 63);

	key[0] = address[0];
	key[1] = address[1];
	if (p->family == 4) {
		key[1] |= 0xffff00000000ULL;
		return;
	}
	if (bits < 64)
		key[0] &= high;
	key[1] &= low;
}

/* Says which bucket the packet belongs to, and whether its key has two addresses. */
static __always_inline bool identify(struct rl_bucket *of, const struct rl_rule *rule, const struct packet *p)
{
	of->id = (__u64)rule->instance << RL_INSTANCE_SHIFT;
	of->key[2] = of->key[3] = 0;
	if (rule->scope == RL_PER_IP) {
		key_of(&of->key[0], p->src, p, rule->prefix);
		return false;
	}
	if (rule->scope == RL_PER_DST) {
		key_of(&of->key[0], p->dst, p, 128);
		return false;
	}
	key_of(&of->key[0], p->src, p, 128);
	key_of(&of->key[2], p->dst, p, 128);
	of->id |= (__u64)p->protocol << 32;
	if (p->has_ports)
		of->id |= (__u64)p->src_port << 16 | p->dst_port;
	return true;
}

/* The rule's common bucket. Its windows begin with its first packet, as those of all others do. */
static __always_inline void common_of(__u32 slot, __u64 tick, struct charge *charge)
{
	struct rl_bucket *bucket = &common[slot & (FW_SLOTS - 1)].bucket;

	if (!(*(volatile __u64 *)&bucket->word[0] | *(volatile __u64 *)&bucket->word[1]))
		*(volatile __u32 *)&bucket->start = tick;
	charge->bucket = bucket;
	charge->tale = &common[slot & (FW_SLOTS - 1)].tale;
	charge->is_common = true;
}

/* Finds or makes the bucket of a packet. */
static __always_inline void find_charge(struct work *work, const struct rl_rule *rule, __u32 slot, __u64 tick,
					__u64 time, struct rl_cpu_counts *counts, struct charge *charge)
{
	struct rl_bucket *of = &work->of;
	__u64 hash;
	bool wide;
	int made;

	if (rule->scope == RL_GLOBAL) {
		common_of(slot, tick, charge);
		return;
	}
	wide = identify(of, rule, &work->packet);
	hash = hash_of(of, wide);
	if (find_bucket(of, wide, hash, charge)) {
		touch_bucket(charge->bucket, tick);
		return;
	}
	of->word[0] = rule->algorithm <= RL_LEAKY_BUCKET ? time : 0;
	of->word[1] = 0;
	of->start = tick;
	of->seen = while_of(tick) | (rule->hold & 31U) << RL_WHILE_BITS;
	made = make_bucket(of, hash, tick);
	if (made && find_bucket(of, wide, hash, charge)) {
		counts->made++;
		counts->replaced += made == 2;
		return;
	}
	counts->crowded++;
	common_of(slot, tick, charge);
}

/* Whether a bucket is blocked; what is over now ends here. */
static __always_inline bool is_blocked(const struct charge *charge, __u64 tick)
{
	__u32 seen = *(volatile __u32 *)&charge->bucket->seen;

	if (!(seen >> RL_BLOCKED_BIT))
		return false;
	if ((__s32)(*(volatile __u32 *)&charge->tale->blocked_until - (__u32)tick) > 0)
		return true;
	__sync_val_compare_and_swap(&charge->bucket->seen, seen, seen & ~(1U << RL_BLOCKED_BIT));
	return false;
}

static __always_inline void block(const struct charge *charge, const struct rl_rule *rule, __u64 tick)
{
	*(volatile __u32 *)&charge->tale->blocked_until = tick + rule->block_ticks;
	__sync_fetch_and_or(&charge->bucket->seen, 1U << RL_BLOCKED_BIT);
}

/* Records a packet over the limit, if none was recorded of this bucket for a while. */
static __always_inline void tell(struct xdp_md *ctx, const struct packet *p, const struct rl_rule *rule,
				 const struct charge *charge, __u32 slot, __u32 bytes, __u32 generation, __u32 tick,
				 struct rl_cpu_counts *counts)
{
	struct rl_tale *tale = charge->tale;
	__u32 dropped = __sync_fetch_and_add(&tale->dropped, 1) + 1, old = *(volatile __u32 *)&tale->told_tick;
	struct rl_event *event;

	if (old && tick - old < tell_interval)
		return;
	if (__sync_val_compare_and_swap(&tale->told_tick, old, tick | !tick) != old)
		return; /* another CPU tells it */
	event = bpf_ringbuf_reserve(&rl_events, sizeof(*event), 0);
	if (!event) {
		counts->ring_full++;
		return;
	}
	counts->events++;
	event->boot_ns = bpf_ktime_get_boot_ns();
	event->src[0] = p->src[0];
	event->src[1] = p->src[1];
	event->dst[0] = p->dst[0];
	event->dst[1] = p->dst[1];
	event->ifindex = ctx->ingress_ifindex;
	event->packets = dropped - tale->told;
	tale->told = dropped;
	event->bytes = bytes;
	event->generation = generation;
	event->slot = slot;
	event->src_port = p->has_ports ? p->src_port : 0;
	event->dst_port = p->has_ports ? p->dst_port : 0;
	event->vlan = p->vlan;
	event->family = p->family;
	event->protocol = p->protocol;
	event->tcp_flags = p->tcp_flags;
	event->action = rule->action;
	event->common = charge->is_common;
	__builtin_memset(event->pad, 0, sizeof(event->pad));
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

/* The way of every packet, once it was read into work. A function of its own, verified once. */
__noinline int limit_packet(struct xdp_md *ctx, struct work *work, __u32 bytes)
{
	__u32 index = *(volatile __u32 *)&control.active & 1, answer, slot;
	__u64 tick = bpf_jiffies64(), cpu = bpf_get_smp_processor_id(), time, cost;
	struct rl_cpu_counts *counts;
	const struct rl_rule *rule;
	struct fw_tables *t = &tables[index];
	struct rl_rules *r = &rules[index];
	struct charge charge;
	bool over;

	if (!work || cpu >= count_cpus)
		return XDP_PASS;
	answer = find_rule(t, r, index, ctx->ingress_ifindex, work);
	if (answer & FW_NO_MATCH)
		return XDP_PASS;
	slot = answer & FW_SLOT_MASK;
	OPAQUE(slot); /* clang knows that it is small, the verifier has to see it */
	slot &= FW_SLOT_MASK;
	rule = &r->rule[slot];
	counts = counts_of(cpu);
	time = (rule->fine ? bpf_ktime_get_ns() : tick * tick_ns + host.tick_zero_ns) << 16;
	cost = rule->bits ? (__u64)bytes * 8 : 1;
	find_charge(work, rule, slot, tick, time, counts, &charge);
	over = is_blocked(&charge, tick);
	if (!over) {
		enum taken taken = take(charge.bucket, rule, tick, time, cost);

		over = taken != TAKEN;
		counts->contended += taken == CONTENDED;
		/* Not the bucket of those who found no room: one of them would shut out all others. */
		if (over && rule->action == RL_BLOCK && (!charge.is_common || rule->scope == RL_GLOBAL))
			block(&charge, rule, tick);
	}
	if (!over || (t->policy.dhcp && is_dhcp_answer(&work->packet)) || is_guard_packet(&t->policy, &work->packet)) {
		counts->rule[slot].passed++;
		counts->rule[slot].passed_bytes += bytes;
		return XDP_PASS;
	}
	counts->rule[slot].dropped++;
	counts->rule[slot].dropped_bytes += bytes;
	tell(ctx, &work->packet, rule, &charge, slot, bytes, t->policy.generation, tick, counts);
	return rule->action == RL_PASS || !t->policy.enforce ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int xdp_ratelimit(struct xdp_md *ctx)
{
	__u32 zero = 0, bytes = multi_buffer ? bpf_xdp_get_buff_len(ctx) : ctx->data_end - ctx->data;
	struct work *work = bpf_map_lookup_elem(&rl_work, &zero);
	int action = XDP_PASS;

	if (!work)
		return XDP_ABORTED; /* it is an array's first entry */
	if (read_common_packet(ctx, &work->packet) || read_packet(ctx, &work->packet))
		action = limit_packet(ctx, work, bytes);
	if (action == XDP_PASS && steers)
		chain_to(ctx, CHAIN_STEER);
	return action;
}

/* What the timer walks on each call. */
struct expiry {
	struct bpf_timer timer;
	__u64 next;		/* set */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct expiry);
} rl_expiry SEC(".maps");

enum {
	EXPIRE_EVERY_NS = 100000000,
	EXPIRE_PARTS = 64, /* so the whole table in 6.4 seconds */
	CLOCK_MONOTONIC = 1,
};

static int expire_set(__u32 i, void *context)
{
	__u64 place = (*(__u64 *)context + i) & (rl_sets - 1), tick = bpf_jiffies64();
	struct rl_set *set = set_at(place);

#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < RL_WAYS; i++) {
		struct rl_bucket *bucket = &set->way[i];
		__u64 id = *(volatile __u64 *)&bucket->id;

		if (!id || id == RL_CLAIMED || !is_silent(bucket, tale_at(place, i), tick))
			continue;
		if (__sync_val_compare_and_swap(&bucket->id, id, 0) == id)
			__sync_fetch_and_add(&host.expired, 1);
	}
	return 0;
}

/* Frees a part of the table in the kernel, so that an agent that is gone leaves no old buckets. */
static int expire(void *map, __u32 *key, struct expiry *expiry)
{
	__u64 sets = rl_sets / EXPIRE_PARTS, next = expiry->next;

	if (!sets)
		sets = rl_sets;
	bpf_loop(sets, expire_set, &next, 0);
	expiry->next = (next + sets) & (rl_sets - 1);
	bpf_timer_start(&expiry->timer, EXPIRE_EVERY_NS, 0);
	return 0;
}

/* Run once by the agent. */
SEC("syscall")
int start_expiry(void *ctx)
{
	__u32 zero = 0;
	struct expiry *expiry = bpf_map_lookup_elem(&rl_expiry, &zero);

	if (!expiry)
		return -1;
	host.tick_zero_ns = bpf_ktime_get_ns() - bpf_jiffies64() * tick_ns;
	if (bpf_timer_init(&expiry->timer, &rl_expiry, CLOCK_MONOTONIC))
		return -2;
	if (bpf_timer_set_callback(&expiry->timer, expire))
		return -3;
	return bpf_timer_start(&expiry->timer, EXPIRE_EVERY_NS, 0) ? -4 : 0;
}
