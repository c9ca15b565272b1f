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
#include "syn.h"

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

/* Beside enum xdp_action: the SYN is to be answered with a cookie; there is more to do. */
enum { ANSWER = 16, LEFT_OVER = 64 };

/* What a packet is worked on, by CPU; see xdp_firewall. */
struct work {
	struct packet packet;
	struct classes classes;
	struct rl_key of;
	struct rl_answered answered;
	struct rl_bucket fresh;
	struct rl_back fresh_back;
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
	counts += cpu;
	OPAQUE(counts); /* here and now: the verifier of 6.1 forgets a bound on the way through the stack */
	return counts;
}

/* Reads any packet; false when no limit is meant for it. A function of its own, verified once. */
__noinline int read_packet(struct xdp_md *ctx, struct packet *out)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct packet p = { .nothing = *(volatile __u32 *)&control.nothing };
	int why;

	if (!out)
		return false;
	why = parse_frame(data, data_end, &p);
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
	if (six)
		find_rows_v6(t, p, c);
	else
		find_rows_v4(t, p, c);
	find_classes(f, p, iface_number(&t->policy, ifindex), c);
	return classify(f, c, index, 0);
}

/* An address as a whole key, the first bits of it. */
static __always_inline void key_of(__u64 key[2], const __u64 address[2], const struct packet *p, __u32 bits)
{
	key[0] = address[0];
	key[1] = address[1];
	if (p->family == 4) {
		key[1] |= 0xffff00000000ULL;
		return;
	}
	if (bits < 64)
		key[0] &= ~0ULL << ((64 - bits) & 63);
	key[1] &= bits > 64 ? ~0ULL << ((128 - bits) & 63) : 0;
}

/* Says which bucket the packet belongs to, and whether its key is wide. */
static __always_inline bool identify(struct rl_key *of, const struct rl_rule *rule, const struct packet *p)
{
	const __u64 *address = rule->scope == RL_PER_DST ? p->dst : p->src;
	__u32 bits = rule->scope == RL_PER_DST ? 128 : rule->prefix;

	of->id = (__u64)rule->instance << RL_INSTANCE_SHIFT;
	of->word[2] = of->word[3] = 0;
	if (rule->scope == RL_PER_FLOW) {
		key_of(&of->word[0], p->src, p, 128);
		key_of(&of->word[2], p->dst, p, 128);
		of->id |= (__u64)p->protocol << 32;
		if (p->has_ports)
			of->id |= (__u64)p->src_port << 16 | p->dst_port;
		return true;
	}
	of->id |= p->family;
	if (p->family == 4) {
		of->word[0] = address[1];
		of->word[1] = 0;
		return false;
	}
	key_of(&of->word[0], address, p, bits);
	return bits > 64;
}

/* The rule's common bucket. Its windows begin with its first packet, as those of all others do. */
static __always_inline void common_of(__u32 slot, __u64 tick, struct charge *charge)
{
	struct rl_bucket *bucket = &common[slot & (FW_SLOTS - 1)].bucket;

	charge->back = &common[slot & (FW_SLOTS - 1)].back;
	if (!(*(volatile __u64 *)&bucket->word | *(volatile __u64 *)&charge->back->word))
		*(volatile __u32 *)&bucket->start = tick;
	charge->bucket = bucket;
	charge->is_common = true;
}

/* The time of token and leaky buckets. */
static __always_inline __u64 time_of(const struct rl_rule *rule, __u64 tick)
{
	return (rule->fine ? bpf_ktime_get_ns() : tick * tick_ns + host.tick_zero_ns) << 16;
}

/* Finds or makes the bucket of a packet. */
static __always_inline void find_charge(struct work *work, const struct rl_rule *rule, __u32 slot, __u64 tick,
					__u64 time, struct rl_cpu_counts *counts, struct charge *charge)
{
	struct rl_key *of = &work->of;
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
		touch_bucket(charge->bucket, *(volatile __u32 *)&charge->bucket->seen, rule->action == RL_BLOCK,
			     tick);
		return;
	}
	made = make_bucket(of, hash, tick, rule->algorithm <= RL_LEAKY_BUCKET ? time : 0, rule->hold);
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
	if ((__s32)(*(volatile __u32 *)&charge->back->blocked_until - (__u32)tick) > 0)
		return true;
	__sync_val_compare_and_swap(&charge->bucket->seen, seen, seen & ~(1U << RL_BLOCKED_BIT));
	return false;
}

static __always_inline void block(const struct charge *charge, const struct rl_rule *rule, __u64 tick)
{
	*(volatile __u32 *)&charge->back->blocked_until = tick + rule->block_ticks;
	__sync_fetch_and_or(&charge->bucket->seen, 1U << RL_BLOCKED_BIT);
}

/* Records a packet over the limit, if none was recorded of this bucket for a while. */
static __always_inline void tell(struct xdp_md *ctx, const struct packet *p, const struct rl_rule *rule,
				 const struct charge *charge, __u32 slot, __u32 bytes, __u32 generation, __u32 tick,
				 struct rl_cpu_counts *counts)
{
	struct rl_back *back = charge->back;
	__u32 dropped = __sync_fetch_and_add(&back->dropped, 1) + 1, old = *(volatile __u32 *)&back->told_tick;
	struct rl_event *event;

	if (old && tick - old < tell_interval)
		return;
	if (__sync_val_compare_and_swap(&back->told_tick, old, tick | !tick) != old)
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
	event->packets = dropped - back->told;
	back->told = dropped;
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

/* Counts a SYN in its window; all of that window so far. CPUs at its seam may lose a few. */
static __always_inline __u64 count_syn(__u64 *word, __u64 number)
{
	__u64 old = *(volatile __u64 *)word, first = number << WINDOW_UNITS | 1;

	if (!is_of_window(old, number) && __sync_val_compare_and_swap(word, old, first) == old)
		return 1;
	return window_units(__sync_fetch_and_add(word, 1), number) + 1;
}

/* A SYN whose rule is about cookies: ANSWER if they are in use, else it goes on. */
static __always_inline int meet_syn(struct xdp_md *ctx, const struct packet *p, const struct rl_rule *rule, __u32 slot,
				    __u64 tick, __u32 bytes, struct fw_policy *policy, struct rl_cpu_counts *counts)
{
	struct syn_order *order = order_at_hand();
	struct charge charge;
	__u64 number, open, old;
	bool answers, enforced = rule->action != RL_PASS && policy->enforce;

	common_of(slot, tick, &charge);
	number = ticks_since(charge.bucket->start, tick) / rule->limit.window; /* as window_at(), in half the width */
	open = old = *(volatile __u64 *)&charge.back->word;
	answers = syn_gate(count_syn(&charge.bucket->word, number), number, rule->threshold, &open);
	if (open != old)
		*(volatile __u64 *)&charge.back->word = open;
	if (!answers || (enforced && !host.cookies_usable) || !order || is_guard_packet(&policy->guard, p)) {
		counts->rule[slot].passed++;
		counts->rule[slot].passed_bytes += bytes;
		return XDP_PASS;
	}
	counts->rule[slot].dropped++;
	counts->rule[slot].dropped_bytes += bytes;
	tell(ctx, p, rule, &charge, slot, bytes, policy->generation, tick, counts);
	if (!enforced)
		return XDP_PASS;
	if ((__s32)((__u32)tick + rule->limit.window - host.cookies_until) > 0)
		host.cookies_until = tick + 2 * rule->limit.window;
	order->per_source = rule->limit.per_window;
	order->prefix = rule->prefix;
	order->active = 1;
	return ANSWER;
}

/*
 * Whether xdp_syncookie is to see a packet that passes: acknowledgements while cookies are in use, and the ends of
 * connections always, whose addresses and ports may come again.
 */
static __always_inline bool is_for_cookies(const struct packet *p)
{
	__u32 index = *(volatile __u32 *)&control.active & 1;
	struct syn_order *order;
	bool active;

	if (!rules[index].cookies || p->protocol != IPPROTO_TCP || !p->has_ports || p->tcp_flags & (TCP_SYN | TCP_RST))
		return false;
	active = (__s32)(host.cookies_until - (__u32)bpf_jiffies64()) > 0;
	if (!active && !(p->tcp_flags & TCP_FIN))
		return false;
	order = order_at_hand();
	if (!order)
		return false;
	order->active = active;
	return true;
}

/* The way of every packet, once it was read into work. A function of its own, verified once. */
static __always_inline int limit_packet(struct xdp_md *ctx, struct work *work, __u32 bytes)
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
	counts = counts_of(cpu);
	answer = find_rule(t, r, index, ctx->ingress_ifindex, work);
	if (answer & FW_NO_MATCH)
		return XDP_PASS;
	slot = answer & FW_SLOT_MASK;
	OPAQUE(slot); /* clang knows that it is small, the verifier has to see it */
	slot &= FW_SLOT_MASK;
	rule = &r->rule[slot];
	if (rule->algorithm == RL_SYN_COOKIE)
		return meet_syn(ctx, &work->packet, rule, slot, tick, bytes, &t->policy, counts);
	time = time_of(rule, tick);
	cost = rule->bits ? (__u64)bytes * 8 : 1;
	find_charge(work, rule, slot, tick, time, counts, &charge);
	over = is_blocked(&charge, tick);
	if (!over) {
		enum taken taken = take(&charge, rule, tick, time, cost);

		over = taken != TAKEN;
		counts->contended += taken == CONTENDED;
		/* Not the bucket of those who found no room: one of them would shut out all others. */
		if (over && rule->action == RL_BLOCK && (!charge.is_common || rule->scope == RL_GLOBAL))
			block(&charge, rule, tick);
	}
	if (!over || (t->policy.dhcp && is_dhcp_answer(&work->packet)) || is_guard_packet(&t->policy.guard, &work->packet)) {
		counts->rule[slot].passed++;
		counts->rule[slot].passed_bytes += bytes;
		return XDP_PASS;
	}
	counts->rule[slot].dropped++;
	counts->rule[slot].dropped_bytes += bytes;
	tell(ctx, &work->packet, rule, &charge, slot, bytes, t->policy.generation, tick, counts);
	return rule->action == RL_PASS || !t->policy.enforce ? XDP_PASS : XDP_DROP;
}

/* The key of a common packet's bucket. False if it is not a narrow one. */
static __always_inline bool identify_common(struct rl_key *of, const struct rl_rule *rule, const struct flow_key *key)
{
	of->id = (__u64)rule->instance << RL_INSTANCE_SHIFT | key->family;
	if (key->family == 4) {
		of->word[0] = bpf_ntohl(rule->scope == RL_PER_IP ? key->src[0] : key->src[0] >> 32);
		return rule->scope == RL_PER_IP || rule->scope == RL_PER_DST;
	}
	of->word[0] = bpf_be64_to_cpu(key->src[0]) & ~0ULL << ((64 - rule->prefix) & 63);
	return rule->scope == RL_PER_IP && rule->prefix <= 64;
}

/*
 * The short way: a common packet, whose rule asks nothing of it but the family, passes by a bucket that is there. Most
 * packets of most hosts do. Anything else is left over for limit_packet(), before anything was counted.
 *
 * A bucket is seldom in the cache. The fewer instructions there are from one packet's bucket to the next one's, the sooner
 * the CPU asks for the next while it still waits for the first: a hundred more, and it waits for each of them alone.
 */
static __always_inline int limit_common_packet(struct xdp_md *ctx)
{
	__u32 index = *(volatile __u32 *)&control.active & 1, bytes = ctx->data_end - ctx->data, six, seen, slot;
	__u64 tick = bpf_jiffies64(), cpu = bpf_get_smp_processor_id(), *word, old, next;
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct rl_rules *r = &rules[index];
	struct rl_cpu_counts *counts;
	const struct rl_rule *rule;
	struct charge charge;
	struct flow_key key;
	struct rl_key of;

	if (multi_buffer || cpu >= count_cpus || data + sizeof(struct ethhdr) > data_end)
		return LEFT_OVER;
	counts = counts_of(cpu);
	six = ((struct ethhdr *)data)->h_proto == bpf_htons(ETH_P_IPV6);
	if (r->ask[six] || !read_common_flow(ctx, &key))
		return LEFT_OVER;
	if (r->any[six] & FW_NO_MATCH)
		return XDP_PASS;
	slot = r->any[six] & FW_SLOT_MASK;
	OPAQUE(slot); /* as in limit_packet() */
	slot &= FW_SLOT_MASK;
	rule = &r->rule[slot];
	if (!identify_common(&of, rule, &key) || !find_narrow_bucket(&of, &charge))
		return LEFT_OVER;
	seen = *(volatile __u32 *)&charge.bucket->seen;
	next = next_word(&charge, rule, tick, time_of(rule, tick), rule->bits ? (__u64)bytes * 8 : 1, &word, &old);
	if (seen >> RL_BLOCKED_BIT || next == old || __sync_val_compare_and_swap(word, old, next) != old)
		return LEFT_OVER;
	touch_bucket(charge.bucket, seen, rule->action == RL_BLOCK, tick);
	counts->rule[slot].passed++;
	counts->rule[slot].passed_bytes += bytes;
	return XDP_PASS;
}

SEC("xdp")
int xdp_ratelimit(struct xdp_md *ctx)
{
	int action = limit_common_packet(ctx);
	struct work *work;
	__u32 zero = 0;

	if (action != LEFT_OVER) {
		if (action == XDP_PASS && steers)
			chain_to(ctx, CHAIN_STEER);
		return action;
	}
	work = bpf_map_lookup_elem(&rl_work, &zero);
	if (!work)
		return XDP_ABORTED; /* it is an array's first entry */
	action = XDP_PASS;
	if (read_common_packet(ctx, &work->packet) || read_packet(ctx, &work->packet))
		action = limit_packet(ctx, work, multi_buffer ? bpf_xdp_get_buff_len(ctx) : ctx->data_end - ctx->data);
	if (action == ANSWER || (action == XDP_PASS && is_for_cookies(&work->packet))) {
		chain_to(ctx, CHAIN_SYNCOOKIE);
		action = XDP_PASS;
	}
	if (action == XDP_PASS && steers)
		chain_to(ctx, CHAIN_STEER);
	return action;
}

/* Whether a packet of this cost would be over the limit of a bucket that stays as it is. */
static __always_inline bool would_be_over(const struct charge *charge, const struct rl_rule *rule, __u64 tick,
					  __u64 time, __u64 cost)
{
	__u64 *word, old;

	return next_word(charge, rule, tick, time, cost, &word, &old) == old;
}

/* The answer to a question about a packet that was read into work: what limit_packet() would do, and nothing is changed. */
__noinline int answer_about(struct xdp_md *ctx, struct work *work, struct rl_answered *answered, __u32 bytes)
{
	__u32 index = *(volatile __u32 *)&control.active & 1, slot;
	__u64 tick = bpf_jiffies64(), time, cost, hash;
	struct fw_tables *t = &tables[index];
	struct rl_rules *r = &rules[index];
	const struct rl_rule *rule;
	struct charge charge;
	bool wide;

	if (!work || !answered)
		return 0;
	answered->tick = tick;
	answered->answer = find_rule(t, r, index, ctx->ingress_ifindex, work);
	if (answered->answer & FW_NO_MATCH)
		return 0;
	slot = answered->answer & FW_SLOT_MASK;
	OPAQUE(slot);
	slot &= FW_SLOT_MASK;
	rule = &r->rule[slot];
	time = time_of(rule, tick);
	cost = rule->bits ? (__u64)bytes * 8 : 1;
	answered->exempt = (t->policy.dhcp && is_dhcp_answer(&work->packet)) ||
			   is_guard_packet(&t->policy.guard, &work->packet);
	if (rule->algorithm == RL_SYN_COOKIE) {
		__u64 number, open;

		answered->place = RL_COMMON;
		charge.bucket = &common[slot & (FW_SLOTS - 1)].bucket;
		number = window_at(ticks_since(charge.bucket->start, tick), 0, &rule->limit).number;
		open = *(volatile __u64 *)&common[slot & (FW_SLOTS - 1)].back.word;
		answered->over = syn_gate(window_units(*(volatile __u64 *)&charge.bucket->word, number) + 1, number,
					  rule->threshold, &open);
		return 1;
	}
	if (rule->scope == RL_GLOBAL) {
		answered->place = RL_COMMON;
		charge.bucket = &common[slot & (FW_SLOTS - 1)].bucket;
		charge.back = &common[slot & (FW_SLOTS - 1)].back;
	} else {
		wide = identify(&work->of, rule, &work->packet);
		hash = hash_of(&work->of, wide);
		if (!find_bucket(&work->of, wide, hash, &charge)) {
			work->fresh = (struct rl_bucket){ .start = tick };
			work->fresh_back = (struct rl_back){};
			if (rule->algorithm <= RL_LEAKY_BUCKET)
				work->fresh.word = time;
			charge.bucket = &work->fresh;
			charge.back = &work->fresh_back;
			answered->over = would_be_over(&charge, rule, tick, time, cost);
			return 1;
		}
		answered->place = RL_OWN;
		answered->at = ((__u64)charge.back - (__u64)backs) / sizeof(struct rl_back);
	}
	answered->blocked = *(volatile __u32 *)&charge.bucket->seen >> RL_BLOCKED_BIT &&
			    (__s32)(*(volatile __u32 *)&charge.back->blocked_until - (__u32)tick) > 0;
	answered->over = answered->blocked || would_be_over(&charge, rule, tick, time, cost);
	return 1;
}

/*
 * Says what xdp_ratelimit would do to a packet: the answer is written over the metadata in front of it. Attached nowhere,
 * so that no packet of the wire gets here and no other one has to be asked whether it is a question.
 */
SEC("xdp")
int explain_limit(struct xdp_md *ctx)
{
	struct rl_answered *out = (void *)(long)ctx->data_meta;
	struct work *work;
	__u64 bytes = (void *)(long)ctx->data_end - (void *)(long)ctx->data;
	__u32 zero = 0;

	OPAQUE(bytes); /* clang would take the difference where it is used, and spill halves of pointers */
	work = bpf_map_lookup_elem(&rl_work, &zero);
	if (!work || (void *)(out + 1) > (void *)(long)ctx->data)
		return XDP_ABORTED;
	work->answered = (struct rl_answered){ .answer = FW_NO_MATCH };
	if (read_packet(ctx, &work->packet))
		answer_about(ctx, work, &work->answered, bytes);
	out = (void *)(long)ctx->data_meta;
	if ((void *)(out + 1) > (void *)(long)ctx->data)
		return XDP_ABORTED;
	*out = work->answered;
	return XDP_PASS;
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

		if (!id || id == RL_CLAIMED || !is_silent(bucket, back_at(place, i), tick))
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
