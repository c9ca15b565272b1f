// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The firewall: parse, classify, ask the state where it matters, judge, count, tell. The only place that drops.
 * A packet reads the live generation once and is judged by that one whole.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"
#include "classify.h"
#include "conntrack.h"
#include "fragments.h"
#include "stats.h"
#include "events.h"
#include "flows.h"
#include "xdp_meta.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Mapped into the agent, which swaps generations by one store. */
struct fw_control control SEC(".bss.control");

/* Drawn by the agent at each load; see struct fw_question. */
const volatile __u64 explain_secret[2];

/* A frame may stand in several buffers (jumbo frames): then its length takes a helper to find out. */
const volatile __u8 multi_buffer;

/* What runs after a pass; empty slots fall through. */
enum { NEXT_RATELIMIT = 0 };
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u32);
} xdp_next SEC(".maps");

/* Beside enum xdp_action: the packet was a question, which no further program is to see; not judged. */
enum { EXPLAINED = 16, LEFT_OVER = 64 };

/*
 * What a packet is worked on, by CPU: the stack has no room for it, and what stands here is unknown to the verifier
 * whichever way led to it, so that what follows a step is verified once.
 */
struct work {
	struct packet packet;
	struct judgement judgement;
	struct conn_key key;
	struct classes classes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct work);
} fw_work SEC(".maps");

static __always_inline __u32 iface_number(const struct fw_policy *policy, __u32 ifindex)
{
	const struct fw_iface *iface = &policy->iface[ifindex * policy->iface_multiplier >> 24];

	return iface->ifindex == ifindex ? iface->number & (FW_IFACES - 1) : FW_OTHER_IFACE;
}

/*
 * SSH and the control port, from where somebody is working: no rule may shut them out. IPv4 sources come mapped into
 * IPv6. A function of its own, verified once.
 */
__noinline int is_guarded(struct fw_policy *policy, __u64 high, __u64 low, __u32 port)
{
	bool guarded = false;

	if (!policy)
		return false;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < FW_GUARD_PORTS; i++)
		if (i < policy->guard_ports && policy->guard_port[i] == port)
			guarded = true;
	if (!guarded)
		return false;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < FW_GUARD_NETS; i++) {
		const struct fw_net *net = &policy->guard_net[i];

		if (i >= policy->guard_nets)
			break;
		if (!(((high ^ net->addr[0]) & net->mask[0]) | ((low ^ net->addr[1]) & net->mask[1])))
			return true;
	}
	return false;
}

/* Classes and rows of a packet, and the answer as long as no state is known. */
static __always_inline __u32 classify_packet(struct fw_tables *t, struct fw_family *f, __u32 index,
					     const struct packet *p, __u32 iface, struct classes *c)
{
	if (p->family == 4) {
		c->src_row = lookup_ipv4(&t->v4, 0, p->src[1]);
		c->dst_row = lookup_ipv4(&t->v4, 1, p->dst[1]);
	} else {
		c->src_row = lookup_ipv6(&t->v6, 0, p->src[0], p->src[1]);
		c->dst_row = lookup_ipv6(&t->v6, 1, p->dst[0], p->dst[1]);
	}
	find_classes(f, p, iface, c);
	return classify(f, c, index, 0);
}

/*
 * The state of the packet's connection. key is left for conn_confirm(); the result has bits of enum conn_known.
 */
static __always_inline int find_state(struct xdp_md *ctx, const struct packet *p, __u32 generation,
				      struct conn_key *key, __u8 *state)
{
	bool error = is_icmp_error(p);
	int known = 0;

	if (!error) {
		conn_key_of(p, false, key);
		known = conn_find(key, generation);
	} else if (quoted_key(ctx, p->l4_offset, p->family, key)) {
		known = conn_find(key, generation);
	}
	if (!known)
		*state = can_open(p) ? FW_NEW : FW_INVALID;
	else if (error)
		*state = FW_RELATED;
	else if (known & CONN_HERE) /* an answer opens nothing, whatever the rules are now */
		*state = FW_ESTABLISHED;
	else /* after a change of rules it is judged again, as if it were new; what opens always is */
		*state = known & CONN_STALE || (p->protocol == IPPROTO_TCP && can_open(p)) ? FW_NEW : FW_ESTABLISHED;
	return error ? known & ~CONN_TOUCH : known;
}

/* A packet that could be parsed, against rules, state and policy. */
static __always_inline void judge(struct xdp_md *ctx, struct fw_tables *t, __u32 index, __u32 iface,
				  struct work *work, bool explaining)
{
	const struct packet *p = &work->packet;
	struct fw_family *f = &t->family[p->family == 6];
	struct judgement *j = &work->judgement;
	int known = 0;

	if (f->mode != FW_MODE_EMPTY)
		j->answer = classify_packet(t, f, index, p, iface, &work->classes);
	if (j->answer & FW_STATEFUL ||
	    (j->answer & FW_NO_MATCH && t->policy.drop_unmatched && t->policy.stateful)) {
		known = find_state(ctx, p, t->policy.generation, &work->key, &j->state);
		if (j->answer & FW_STATEFUL)
			j->answer = classify(f, &work->classes, index, 1 + j->state);
	}
	if (!(j->answer & FW_NO_MATCH)) {
		j->reason = FW_BY_RULE;
		j->drop = !!(j->answer & FW_DENY);
	} else if (known & CONN_HERE && t->policy.stateful) {
		j->reason = FW_BY_STATE;
		j->drop = 0;
	} else {
		j->reason = FW_BY_POLICY;
		j->drop = t->policy.drop_unmatched;
	}
	if (known && (known & CONN_TOUCH || p->tcp_flags & TCP_FIN) && !j->drop && !explaining)
		conn_confirm(&work->key, t->policy.generation, p->tcp_flags);
	if (j->drop) {
		/* Networks of the guard are kept as IPv6; an IPv4 source is mapped. */
		__u64 mapped = p->family == 4 ? 0xffff00000000ULL : 0;

		if (t->policy.dhcp && is_dhcp_answer(p))
			j->exception = FW_DHCP;
		else if (p->protocol == IPPROTO_TCP && t->policy.guard_filter >> (p->dst_port & 63) & 1 &&
			 is_guarded(&t->policy, p->src[0], p->src[1] | mapped, p->dst_port))
			j->exception = FW_GUARD;
		if (j->exception) {
			j->reason = FW_BY_EXCEPTION;
			j->drop = 0;
		}
	}
}

static __always_inline void judge_unparsable(const struct fw_policy *policy, int why, struct judgement *j)
{
	j->reason = FW_BY_PARSER;
	j->unparsable = why;
	j->drop = policy->drop_unparsable;
}

/* A later fragment follows its first one, as long as the rules are the same. */
static __always_inline void judge_later_fragment(const struct fw_policy *policy, struct packet *p,
						 struct judgement *j)
{
	int why = frag_later(p, policy->generation, j);

	if (why)
		judge_unparsable(policy, why, j);
}

/* Counts of a rule that matched, or of the reason that decided instead. */
static __always_inline __u32 slot_of(const struct judgement *j)
{
	if ((j->reason == FW_BY_RULE || j->reason == FW_BY_FRAGMENT) && !(j->answer & FW_NO_MATCH))
		return j->answer & FW_SLOT_MASK;
	return FW_SLOTS + j->reason;
}

static __always_inline void count_unparsable(__u32 why)
{
	struct fw_misc_count *count = misc_count();

	OPAQUE(why); /* clang knows that it is small, the verifier has to see it */
	if (count && why < FW_UNPARSABLE)
		count->unparsable[why]++;
}

/* Counts the packet, and records it when it is to be told. */
static __always_inline void count_and_tell(const struct packet *p, const struct judgement *j, __u32 verdict,
					   __u32 ifindex, __u32 iface, __u32 bytes, __u32 generation)
{
	__u32 slot = slot_of(j), cell = j->reason * FW_VERDICTS + verdict, packets = 1;
	struct fw_iface_count *by_iface = bpf_map_lookup_elem(&iface_counts, &iface);
	struct fw_rule_count *by_rule = bpf_map_lookup_elem(&rule_counts, &slot);
	__u64 now = bpf_jiffies64();
	struct fw_event *event;

	OPAQUE(cell);
	if (!by_iface || !by_rule || cell >= FW_VERDICT_COUNTS)
		return;
	by_iface->packets[cell]++;
	by_iface->bytes[cell] += bytes;
	by_rule->packets++;
	by_rule->bytes += bytes;
	by_rule->last_jiffies = now;

	if (j->unparsable)
		count_unparsable(j->unparsable);
	if (j->answer & FW_TELL && !(j->answer & FW_NO_MATCH)) {
		packets = 1;
	} else if (verdict != FW_PASS && (__u32)now - by_rule->told_jiffies >= tell_interval) {
		packets = (__u32)by_rule->packets - by_rule->told_packets;
		by_rule->told_jiffies = now;
		by_rule->told_packets = by_rule->packets;
	} else {
		return;
	}
	event = new_event();
	if (!event)
		return;
	event->boot_ns = bpf_ktime_get_boot_ns();
	event->src[0] = p->src[0];
	event->src[1] = p->src[1];
	event->dst[0] = p->dst[0];
	event->dst[1] = p->dst[1];
	event->ifindex = ifindex;
	event->packets = packets;
	event->bytes = bytes;
	event->generation = generation;
	event->slot = slot;
	event->src_port = p->src_port;
	event->dst_port = p->dst_port;
	event->vlan = p->vlan;
	event->family = p->family;
	event->protocol = p->protocol;
	event->tcp_flags = p->tcp_flags;
	event->icmp_type = p->icmp_type;
	event->icmp_code = p->icmp_code;
	event->verdict = verdict;
	event->reason = j->reason;
	event->state = j->state;
	event->unparsable = j->unparsable;
	__builtin_memset(event->pad, 0, sizeof(event->pad));
	submit_event(event);
}

static __always_inline bool is_question(struct xdp_md *ctx)
{
	struct fw_question *question = (void *)(long)ctx->data_meta;

	return (void *)(question + 1) <= (void *)(long)ctx->data && question->secret[0] == explain_secret[0] &&
	       question->secret[1] == explain_secret[1];
}

static __always_inline void answer_question(struct xdp_md *ctx, const struct packet *p, const struct judgement *j,
					    __u32 verdict, __u32 iface, __u32 generation)
{
	struct fw_answered *answered = (void *)(long)ctx->data_meta;

	if ((void *)(answered + 1) > (void *)(long)ctx->data)
		return;
	answered->generation = generation;
	answered->answer = j->answer;
	answered->verdict = verdict;
	answered->reason = j->reason;
	answered->state = j->state;
	answered->unparsable = j->unparsable;
	answered->exception = j->exception;
	answered->iface = iface;
	answered->family = p->family;
	answered->protocol = p->protocol;
	answered->boot_ns = bpf_ktime_get_boot_ns();
	answered->jiffies = bpf_jiffies64();
}

/* Reads the packet into work, which it clears; the result is FW_PARSED or why not. A function of its own, verified once. */
__noinline int parse_packet(struct xdp_md *ctx, struct work *work)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct packet p = { .nothing = *(volatile __u32 *)&control.nothing };
	int why = parse_frame(data, data_end, &p);

	if (!work)
		return FW_NOT_IP;
	__builtin_memset(work, 0, sizeof(*work));
	work->packet = p;
	work->judgement.answer = FW_NO_MATCH;
	work->judgement.state = FW_STATE_UNKNOWN;
	return why;
}

/*
 * The whole firewall, for every packet. A function of its own: what the common packet does not need (tags, options,
 * fragments, records, questions) costs registers and stack, and so time, also where it is not used.
 */
__noinline int judge_packet(struct xdp_md *ctx)
{
	__u32 index = *(volatile __u32 *)&control.active & 1, ifindex = ctx->ingress_ifindex, zero = 0;
	struct work *work = bpf_map_lookup_elem(&fw_work, &zero);
	struct fw_tables *t = &tables[index];
	__u32 iface, bytes, verdict, generation;
	bool explaining = is_question(ctx);
	struct judgement *j;
	struct packet *p;
	int why;

	if (!work)
		return XDP_ABORTED; /* it is an array's first entry */
	p = &work->packet;
	j = &work->judgement;
	iface = iface_number(&t->policy, ifindex);
	generation = t->policy.generation;
	bytes = multi_buffer ? bpf_xdp_get_buff_len(ctx) : ctx->data_end - ctx->data;
	why = parse_packet(ctx, work);
	if (!why && p->fragment == FIRST_FRAGMENT)
		why = frag_first(p, !explaining);

	if (why) {
		judge_unparsable(&t->policy, why, j);
		if (p->link_control) {
			j->reason = FW_BY_EXCEPTION;
			j->exception = FW_LINK_CONTROL;
			j->unparsable = FW_PARSED;
			j->drop = 0;
		}
	} else if (p->fragment == LATER_FRAGMENT) {
		judge_later_fragment(&t->policy, p, j);
	} else if (is_neighbour_discovery(p)) {
		j->reason = FW_BY_EXCEPTION;
		j->exception = FW_NEIGHBOUR;
	} else {
		judge(ctx, t, index, iface, work, explaining);
		if (p->fragment == FIRST_FRAGMENT && !explaining)
			frag_remember(p, generation, j);
	}

	verdict = !j->drop ? FW_PASS : t->policy.enforce ? FW_DROP : FW_WOULD_DROP;
	if (explaining) {
		answer_question(ctx, p, j, verdict, iface, generation);
		return EXPLAINED | (verdict == FW_DROP ? XDP_DROP : XDP_PASS);
	}
	count_and_tell(p, j, verdict, ifindex, iface, bytes, generation);
	if (verdict == FW_DROP)
		return XDP_DROP;
	if (write_meta) {
		struct xdp_meta meta = {
			.magic = XDP_META_MAGIC,
			.slot = slot_of(j),
			.verdict = verdict,
			.reason = j->reason,
			.l3_offset = p->l3_offset,
			.l4_offset = p->l4_offset,
			.family = p->family,
			.protocol = p->protocol,
			.vlan = p->vlan,
		};

		write_xdp_meta(ctx, &meta);
	}
	return XDP_PASS;
}

/* Whether a TCP or UDP packet belongs to a connection that this host opened, which then lives on. */
static __always_inline bool is_answer(const struct packet *p, __u32 generation, struct conn_key *key)
{
	int known;

	conn_key_of(p, false, key);
	known = conn_find(key, generation);
	if (!(known & CONN_HERE))
		return false;
	if (known & CONN_TOUCH || p->tcp_flags & TCP_FIN)
		conn_confirm(key, generation, p->tcp_flags);
	return true;
}

/*
 * A common packet whose flow was not judged lately: by what the flow cache knows, or by the rules. index is the
 * generation, set where the flow stands in the cache, or could. LEFT_OVER when more than rules and policy decide, and
 * before anything was counted.
 */
__noinline int judge_flow(const struct flow_key *key, struct fw_flow_set *set, __u32 index, __u32 bytes)
{
	struct fw_tables *t = &tables[index & 1];
	__u32 slot, cell, action = XDP_PASS, iface;
	struct fw_iface_count *by_iface;
	struct fw_rule_count *by_rule;
	struct fw_flow *flow = NULL;
	__u64 now = bpf_jiffies64();
	bool known, keep = true;

	index &= 1;
	if (!key)
		return LEFT_OVER;
	iface = key->rest >> 56;
	if (set)
		flow = flow_in(set, key, t->policy.generation);
	known = flow;
	if (flow) {
		flow_count(flow);
		slot = flow->slot;
		cell = flow->cell;
		action = flow->action;
		known = cell != FW_BY_STATE * FW_VERDICTS; /* its connection may have ended since */
		if (known)
			flow->until = (__u32)now + FW_FLOW_TICKS;
	} else if (set) {
		flow = flow_free(set, now);
	}
	if (!known) {
		__u32 answer = FW_NO_MATCH, drop, zero = 0;
		struct work *work = bpf_map_lookup_elem(&fw_work, &zero);
		struct classes *c;
		struct fw_family *f;
		struct packet *p;

		if (!work)
			return LEFT_OVER;
		c = &work->classes;
		p = &work->packet;
		p->family = key->rest >> 32;
		p->protocol = key->rest >> 40;
		p->tcp_flags = key->rest >> 48;
		p->has_ports = 1;
		p->vlan = 0;
		p->src_port = bpf_ntohs(key->rest);
		p->dst_port = bpf_ntohs(key->rest >> 16);
		f = &t->family[p->family == 6];
		if (p->family == 4) {
			p->src[0] = p->dst[0] = 0;
			p->src[1] = bpf_ntohl(key->src[0]);
			p->dst[1] = bpf_ntohl(key->src[0] >> 32);
			c->src_row = lookup_ipv4(&t->v4, 0, p->src[1]);
			c->dst_row = lookup_ipv4(&t->v4, 1, p->dst[1]);
		} else {
			p->src[0] = bpf_be64_to_cpu(key->src[0]);
			p->src[1] = bpf_be64_to_cpu(key->src[1]);
			p->dst[0] = bpf_be64_to_cpu(key->dst[0]);
			p->dst[1] = bpf_be64_to_cpu(key->dst[1]);
			c->src_row = lookup_ipv6(&t->v6, 0, p->src[0], p->src[1]);
			c->dst_row = lookup_ipv6(&t->v6, 1, p->dst[0], p->dst[1]);
		}
		if (f->mode != FW_MODE_EMPTY) {
			find_classes(f, p, iface, c);
			answer = classify(f, c, index, 0);
		}
		if (answer & FW_NO_MATCH) {
			__u32 reason = FW_BY_POLICY;

			drop = t->policy.drop_unmatched;
			if (drop && t->policy.stateful) {
				/* What is dropped now is an answer as soon as this host has asked: not to be kept. */
				keep = is_answer(p, t->policy.generation, &work->key);
				if (keep) {
					reason = FW_BY_STATE;
					drop = 0;
				}
			}
			slot = FW_SLOTS + reason;
			cell = reason * FW_VERDICTS;
		} else {
			if (answer & (FW_TELL | FW_STATEFUL))
				return LEFT_OVER;
			drop = answer & FW_DENY;
			slot = answer & FW_SLOT_MASK;
			cell = FW_BY_RULE * FW_VERDICTS;
		}
		if (drop) {
			/* Exceptions that may save it. */
			if (p->protocol == IPPROTO_UDP ? p->dst_port == 68 || p->dst_port == 546 :
							t->policy.guard_filter >> (p->dst_port & 63) & 1)
				return LEFT_OVER;
			cell += t->policy.enforce ? FW_DROP : FW_WOULD_DROP;
			action = t->policy.enforce ? XDP_DROP : XDP_PASS;
		}
	}
	by_rule = bpf_map_lookup_elem(&rule_counts, &slot);
	by_iface = bpf_map_lookup_elem(&iface_counts, &iface);
	OPAQUE(cell);
	if (!by_rule || !by_iface || cell >= FW_VERDICT_COUNTS)
		return LEFT_OVER;
	if (cell % FW_VERDICTS != FW_PASS && (__u32)now - by_rule->told_jiffies >= tell_interval)
		return LEFT_OVER; /* a record is due */
	if (!known && keep && flow) {
		flow_count(flow);
		flow->src[0] = key->src[0];
		flow->src[1] = key->src[1];
		flow->dst[0] = key->dst[0];
		flow->dst[1] = key->dst[1];
		*(__u64 *)&flow->ports = key->rest;
		flow->generation = t->policy.generation;
		flow->slot = slot;
		flow->cell = cell;
		flow->action = action;
		flow->until = (__u32)now + (cell == FW_BY_STATE * FW_VERDICTS ? 1 : FW_FLOW_TICKS);
	}
	by_rule->packets++;
	by_rule->bytes += bytes;
	by_rule->last_jiffies = now;
	by_iface->packets[cell]++;
	by_iface->bytes[cell] += bytes;
	return action;
}

/*
 * The common packet: untagged, whole, without options or extension headers, TCP or UDP, judged by rules that ask for no
 * state, by the policy, or as an answer. Judges exactly as judge_packet() does; whatever it does not know for certain it
 * leaves to that, by returning LEFT_OVER before the packet was counted.
 */
static __always_inline int judge_common_packet(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	__u32 index = *(volatile __u32 *)&control.active & 1, need, claimed, bytes = data_end - data;
	struct fw_tables *t = &tables[index];
	struct fw_flow_set *set = NULL;
	struct flow_key key = {};
	__u8 family, protocol;
	__u8 *l4;

	if (write_meta || multi_buffer || ctx->data_meta != ctx->data || data + 54 > data_end)
		return LEFT_OVER;
	if (*(__be16 *)(data + 12) == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data + 14;

		if (*(__u8 *)ip != 0x45 || ip->frag_off & bpf_htons(FRAGMENT_OFFSET_V4 | FRAGMENT_MORE_V4))
			return LEFT_OVER;
		family = 4;
		protocol = ip->protocol;
		key.src[0] = *(__u64 *)&ip->saddr;
		claimed = bpf_ntohs(ip->tot_len);
		need = sizeof(*ip);
		l4 = data + 34;
	} else if (*(__be16 *)(data + 12) == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = data + 14;
		__u64 *address = data + 22;

		if (data + 74 > data_end || ip->version != 6)
			return LEFT_OVER;
		family = 6;
		protocol = ip->nexthdr;
		key.src[0] = address[0];
		key.src[1] = address[1];
		key.dst[0] = address[2];
		key.dst[1] = address[3];
		claimed = bpf_ntohs(ip->payload_len);
		need = 0;
		l4 = data + 54;
	} else {
		return LEFT_OVER;
	}
	key.rest = *(__u32 *)l4 | (__u64)family << 32 | (__u64)protocol << 40 |
		   (__u64)iface_number(&t->policy, ctx->ingress_ifindex) << 56;
	if (protocol == IPPROTO_TCP) {
		need += 20;
		if (l4[12] < 0x50)
			return LEFT_OVER;
		/* The end of a connection has to be seen whatever was kept of it. */
		key.rest |= (__u64)(l4[13] & (t->family[family == 6].uses & FW_USES_TCP_FLAGS ? 255 : TCP_FIN)) << 48;
	} else if (protocol == IPPROTO_UDP) {
		need += 8;
	} else {
		return LEFT_OVER;
	}
	if (claimed < need)
		return LEFT_OVER;

	if (*(volatile __u32 *)&control.flows_generation == t->policy.generation) {
		struct fw_flow *flow;

		set = flow_set(&key);
		if (!set)
			return LEFT_OVER;
		flow = flow_in(set, &key, t->policy.generation);
		if (flow && is_fresh(flow, bpf_jiffies64())) {
			flow->packets++;
			flow->bytes += bytes;
			return flow->action;
		}
	}
	return judge_flow(&key, set, index, bytes);
}

SEC("xdp")
int xdp_firewall(struct xdp_md *ctx)
{
	int action = judge_common_packet(ctx);

	if (action == LEFT_OVER)
		action = judge_packet(ctx);
	if (action & EXPLAINED)
		return action & ~EXPLAINED;
	if (action == XDP_PASS)
		bpf_tail_call(ctx, &xdp_next, NEXT_RATELIMIT);
	return action;
}
