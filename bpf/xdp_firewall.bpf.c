// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The firewall: parse, classify, ask the state where it matters, judge, count, tell. What the agent has blocked is dropped
 * before that (include/verdicts.h).
 * A packet reads the live generation once and is judged by that one whole.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"
#include "classify.h"
#include "conntrack.h"
#include "fragments.h"
#include "counts.h"
#include "stats.h"
#include "events.h"
#include "flows.h"
#include "policy.h"
#include "routes.h"
#include "chain.h"
#include "xdp_meta.h"
#include "verdicts.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Mapped into the agent, which swaps generations by one store. */
struct fw_control control SEC(".bss.control");

/* Drawn by the agent at each load; see struct fw_question. */
const volatile __u64 explain_secret[2];

/* A frame may stand in several buffers (jumbo frames): then its length takes a helper to find out. */
const volatile __u8 multi_buffer;

/* The kernel checks cookies without a listener (6.0+). */
const volatile __u8 has_raw_helpers;

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
	struct route route;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct work);
} fw_work SEC(".maps");

/* Classes and rows of a packet, and the answer as long as no state is known. */
static __always_inline __u32 classify_packet(struct fw_tables *t, struct fw_family *f, __u32 index,
					     const struct packet *p, __u32 iface, struct classes *c)
{
	if (p->family == 4)
		find_rows_v4(t, p, c);
	else
		find_rows_v6(t, p, c);
	find_classes(f, p, iface, c);
	return classify(f, c, index, 0);
}

/*
 * Whether an acknowledgement carries a SYN cookie of this host: it opens the connection, in the place of the SYN that was
 * answered before it came to the stack, and left nothing in the table. A function of its own, verified once.
 */
__noinline int carries_cookie(struct xdp_md *ctx, const struct work *work)
{
	enum { OFFSET_MASK = 0x7fff };
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct tcphdr tcp, *there;

	if (!has_raw_helpers || !work)
		return false;
	there = data + (work->packet.l4_offset & OFFSET_MASK);
	if ((void *)(there + 1) > data_end)
		return false;
	tcp = *there;
	if (work->packet.family == 4) {
		struct iphdr ip = { .version = 4, .ihl = 5 };

		ip.saddr = bpf_htonl(work->packet.src[1]);
		ip.daddr = bpf_htonl(work->packet.dst[1]);
		return !bpf_tcp_raw_check_syncookie_ipv4(&ip, &tcp);
	} else {
		struct ipv6hdr ip = { .version = 6 };
		__u64 *address = (void *)ip.saddr;

		address[0] = bpf_cpu_to_be64(work->packet.src[0]);
		address[1] = bpf_cpu_to_be64(work->packet.src[1]);
		address[2] = bpf_cpu_to_be64(work->packet.dst[0]);
		address[3] = bpf_cpu_to_be64(work->packet.dst[1]);
		return !bpf_tcp_raw_check_syncookie_ipv6(&ip, &tcp);
	}
}

/* Whether a packet may belong to a connection whose SYN was answered with a cookie, and its state is not known. */
static __always_inline bool may_carry_cookie(const struct packet *p)
{
	return p->protocol == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_ACK;
}

/*
 * The state of the packet's connection. key is left for conn_confirm(); the result has bits of enum conn_known.
 */
static __always_inline int find_state(struct xdp_md *ctx, const struct work *work, __u32 generation,
				      struct conn_key *key, __u8 *state)
{
	const struct packet *p = &work->packet;
	bool error = is_icmp_error(p);
	int known = 0;

	if (!error) {
		conn_key_of(p, false, key);
		known = conn_find(key, generation);
	} else if (quoted_key(ctx, p->l4_offset, p->family, key)) {
		known = conn_find(key, generation);
	}
	if (!known)
		*state = can_open(p) || (may_carry_cookie(p) && carries_cookie(ctx, work)) ? FW_NEW : FW_INVALID;
	else if (error)
		*state = FW_RELATED;
	else if (known & CONN_HERE) /* an answer opens nothing, whatever the rules are now */
		*state = FW_ESTABLISHED;
	else /* after a change of rules it is judged again, as if it were new; what opens always is */
		*state = known & CONN_STALE || (p->protocol == IPPROTO_TCP && can_open(p)) ? FW_NEW : FW_ESTABLISHED;
	return error ? known & ~CONN_TOUCH : known;
}

/* A packet that would pass does not, if its source is forged. */
static __always_inline void check_source(struct xdp_md *ctx, struct fw_policy *policy, struct work *work)
{
	struct judgement *j = &work->judgement;

	if (j->drop || !policy->rp_filter || !work->packet.family || !is_forged(ctx, policy, &work->packet))
		return;
	j->answer = FW_NO_MATCH;
	j->reason = FW_BY_RPFILTER;
	j->unparsable = FW_PARSED;
	j->drop = 1;
}

/* A packet that find_block() spoke of. */
static __always_inline void judge_blocked(int reason, struct judgement *j)
{
	j->answer = FW_NO_MATCH;
	j->reason = reason;
	j->unparsable = FW_PARSED;
	j->exception = FW_NO_EXCEPTION;
	j->drop = 1;
}

/* A packet that could be parsed, against rules, state, policy and routes. */
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
		known = find_state(ctx, work, t->policy.generation, &work->key, &j->state);
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
	check_source(ctx, &t->policy, work);
	if (known && (known & CONN_TOUCH || p->tcp_flags & TCP_FIN) && !j->drop && !explaining)
		conn_confirm(&work->key, t->policy.generation, p->tcp_flags);
	if (j->drop) {
		if (t->policy.dhcp && is_dhcp_answer(p))
			j->exception = FW_DHCP;
		else if (is_guard_packet(&t->policy.guard, p))
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
static __always_inline void count_and_tell(struct xdp_md *ctx, const struct fw_policy *policy, struct work *work,
					   __u32 verdict, __u32 iface, __u32 bytes)
{
	const struct judgement *j = &work->judgement;
	struct packet *p = &work->packet;

	__u64 now = bpf_jiffies64(), cpu = bpf_get_smp_processor_id();
	__u32 slot = slot_of(j), packets = 1;
	struct fw_event *event;
	struct counters c;

	if (cpu >= count_cpus || !find_counters(&c, counts_of(cpu), slot, j->reason, verdict, iface))
		return;
	count(&c, bytes);
	note(&c, now);
	if (j->unparsable)
		count_unparsable(j->unparsable);
	if (!(j->answer & FW_TELL) || j->answer & FW_NO_MATCH) {
		if (!is_due(&c, verdict, now))
			return;
		packets = (__u32)(c.rule->packets / FW_PACKET) - c.note->told_packets;
		c.note->told_jiffies = now;
		c.note->told_packets += packets;
	}
	if (policy->next_hop)
		find_route(ctx, p, &work->route);
	event = new_event();
	if (!event)
		return;
	event->boot_ns = bpf_ktime_get_boot_ns();
	event->src[0] = p->src[0];
	event->src[1] = p->src[1];
	event->dst[0] = p->dst[0];
	event->dst[1] = p->dst[1];
	event->ifindex = ctx->ingress_ifindex;
	event->packets = packets;
	event->bytes = bytes;
	event->generation = policy->generation;
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
	event->next_hop_family = work->route.family;
	event->out_ifindex = work->route.ifindex;
	event->next_hop[0] = work->route.next_hop[0];
	event->next_hop[1] = work->route.next_hop[1];
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

/* Whether what passes takes metadata along: as long as a rule mirrors, or always. */
static __always_inline bool notes_meta(const struct fw_policy *policy)
{
	return write_meta || policy->write_meta;
}

/*
 * Writes the metadata of a common packet that passes, the same as judge_packet() writes: the slot tells the reason, and
 * the rest stands at fixed places. A function of its own, so that nothing is paid as long as nobody reads metadata.
 */
__noinline int note_common_packet(struct xdp_md *ctx, __u32 slot, __u32 verdict)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct xdp_meta meta = { .magic = XDP_META_MAGIC, .slot = slot, .verdict = verdict, .l3_offset = 14 };

	if (data + FLOW_FRAME_MIN > data_end)
		return 0;
	meta.reason = slot < FW_SLOTS ? FW_BY_RULE : slot - FW_SLOTS;
	if (*(__be16 *)(data + 12) == bpf_htons(ETH_P_IP)) {
		meta.l4_offset = 34;
		meta.family = 4;
		meta.protocol = *(__u8 *)(data + 23);
	} else {
		meta.l4_offset = 54;
		meta.family = 6;
		meta.protocol = *(__u8 *)(data + 20);
	}
	write_xdp_meta(ctx, &meta);
	return 0;
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
 * The whole firewall, for every packet; blocked is what find_block() says of a question. A function of its own: what the common packet does not need (tags, options,
 * fragments, records, questions) costs registers and stack, and so time, also where it is not used.
 */
__noinline int judge_packet(struct xdp_md *ctx, __u32 blocked)
{
	__u32 index = *(volatile __u32 *)&control.active & 1, zero = 0;
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
	iface = iface_number(&t->policy, ctx->ingress_ifindex);
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
		} else {
			check_source(ctx, &t->policy, work);
		}
	} else if (p->fragment == LATER_FRAGMENT) {
		judge_later_fragment(&t->policy, p, j);
		check_source(ctx, &t->policy, work);
	} else if (is_neighbour_discovery(p)) {
		j->reason = FW_BY_EXCEPTION;
		j->exception = FW_NEIGHBOUR;
	} else {
		judge(ctx, t, index, iface, work, explaining);
		if (p->fragment == FIRST_FRAGMENT && !explaining)
			frag_remember(p, generation, j);
	}

	verdict = !j->drop ? FW_PASS : t->policy.enforce ? FW_DROP : FW_WOULD_DROP;
	if (has_blocks && blocked) {
		judge_blocked(blocked, j);
		verdict = FW_DROP;
	}
	if (explaining) {
		answer_question(ctx, p, j, verdict, iface, generation);
		return EXPLAINED | (verdict == FW_DROP ? XDP_DROP : XDP_PASS);
	}
	count_and_tell(ctx, &t->policy, work, verdict, iface, bytes);
	if (verdict == FW_DROP)
		return XDP_DROP;
	if (notes_meta(&t->policy)) {
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

/* Whether a frame is not a question, and stands in one buffer. */
static __always_inline bool is_plain(struct xdp_md *ctx)
{
	return !multi_buffer && ctx->data_meta == ctx->data;
}

/* What is known of the connection that this host opened and the packet belongs to; 0 if there is none. */
static __always_inline int find_answered(const struct packet *p, __u32 generation, struct conn_key *key)
{
	int known;

	conn_key_of(p, false, key);
	known = conn_find(key, generation);
	return known & CONN_HERE ? known : 0;
}

/*
 * A common packet whose flow the cache does not know: by the rules, the policy, or as an answer. Judges exactly as
 * judge_packet() does; whatever it does not know for certain it leaves to that, by returning LEFT_OVER before the packet
 * was counted.
 */
__noinline int judge_common_packet(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	__u32 index = *(volatile __u32 *)&control.active & 1, zero = 0, bytes = data_end - data;
	__u32 slot, reason, verdict = FW_PASS, answer = FW_NO_MATCH, drop;
	struct work *work = bpf_map_lookup_elem(&fw_work, &zero);
	struct fw_tables *t = &tables[index];
	__u64 now = bpf_jiffies64(), cpu = bpf_get_smp_processor_id();
	struct counters counters;
	struct flow_key key = {};
	int known = 0;
	struct classes *c;
	struct fw_family *f;
	struct packet *p;

	if (!work || !is_plain(ctx) || data + FLOW_FRAME_MIN > data_end)
		return LEFT_OVER;
	c = &work->classes;
	p = &work->packet;
	key.iface = iface_number(&t->policy, ctx->ingress_ifindex);
	if (*(__be16 *)(data + 12) == bpf_htons(ETH_P_IP)) {
		f = &t->family[0];
		if (!read_flow_v4(data, f->uses, &key))
			return LEFT_OVER;
		packet_of(&key, p);
		if (f->mode != FW_MODE_EMPTY)
			find_rows_v4(t, p, c);
	} else if (*(__be16 *)(data + 12) == bpf_htons(ETH_P_IPV6)) {
		f = &t->family[1];
		if (!read_flow_v6(data, data_end, f->uses, &key))
			return LEFT_OVER;
		packet_of(&key, p);
		if (f->mode != FW_MODE_EMPTY)
			find_rows_v6(t, p, c);
	} else {
		return LEFT_OVER;
	}
	if (f->mode != FW_MODE_EMPTY) {
		find_classes(f, p, key.iface, c);
		answer = classify(f, c, index, 0);
	}
	if (answer & FW_NO_MATCH) {
		reason = FW_BY_POLICY;
		drop = t->policy.drop_unmatched;
		if (drop && t->policy.stateful) {
			if (is_icmp(p->family, p->protocol))
				return LEFT_OVER; /* what it answers stands behind the header */
			known = find_answered(p, t->policy.generation, &work->key);
			if (known) {
				reason = FW_BY_STATE;
				drop = 0;
			}
		}
		slot = FW_SLOTS + reason;
	} else {
		if (answer & (FW_TELL | FW_STATEFUL))
			return LEFT_OVER;
		reason = FW_BY_RULE;
		drop = answer & FW_DENY;
		slot = answer & FW_SLOT_MASK;
	}
	if (!drop && t->policy.rp_filter && is_forged(ctx, &t->policy, p)) {
		reason = FW_BY_RPFILTER;
		slot = FW_SLOTS + reason;
		drop = 1;
	}
	if (known && !drop && (known & CONN_TOUCH || p->tcp_flags & TCP_FIN))
		conn_confirm(&work->key, t->policy.generation, p->tcp_flags);
	if (drop) {
		/* Exceptions that may save it. */
		if (p->protocol == IPPROTO_UDP && (p->dst_port == 68 || p->dst_port == 546))
			return LEFT_OVER;
		if (p->protocol == IPPROTO_TCP && t->policy.guard.filter >> (p->dst_port & 63) & 1)
			return LEFT_OVER;
		verdict = t->policy.enforce ? FW_DROP : FW_WOULD_DROP;
	}
	if (cpu >= count_cpus || !find_counters(&counters, counts_of(cpu), slot, reason, verdict, key.iface) ||
	    is_due(&counters, verdict, now))
		return LEFT_OVER;
	count(&counters, bytes);
	note(&counters, now);
	if (can_be_kept(&key) && t->policy.flows_open) {
		if (reason == FW_BY_STATE)
			flow_keep(&key, FLOW_IS_STATE | (now & 0xffff), t->policy.flow_turn);
		else if (!drop || reason == FW_BY_RULE || (reason == FW_BY_POLICY && !t->policy.stateful))
			flow_keep(&key, with_while(slot | (drop ? FLOW_DENY : 0), now), t->policy.flow_turn);
		/*
		 * Else it is an answer as soon as this host has asked, or its source is forged, which a flow says nothing of:
		 * not to be kept.
		 */
	}
	if (verdict == FW_DROP)
		return XDP_DROP;
	if (notes_meta(&t->policy))
		note_common_packet(ctx, slot, verdict);
	return XDP_PASS;
}

/* What the cache says of a packet, counted; LEFT_OVER when there is more to do, and then it was not counted. */
static __always_inline int answer_flow(struct xdp_md *ctx, const struct fw_policy *policy, __u64 *word, __u64 cpu,
				       __u32 iface, __u32 bytes, __u64 now)
{
	__u32 answer = *word >> FLOW_ANSWER, slot = answer & FLOW_SLOT_MASK;
	__u32 reason = slot / FW_SLOTS, verdict = FW_PASS; /* a rule, or FW_BY_POLICY */
	struct counters c;

	if (answer & FLOW_IS_STATE) {
		if ((answer ^ (__u32)now) & 0xffff)
			return LEFT_OVER;
		slot = FW_SLOTS + FW_BY_STATE;
		reason = FW_BY_STATE;
	} else {
		verdict = (answer & FLOW_DENY) / FLOW_DENY << (1 - policy->enforce);
		if (with_while(answer, now) != answer)
			*word = (*word & ((1ULL << FLOW_ANSWER) - 1)) | (__u64)with_while(answer, now) << FLOW_ANSWER;
	}
	if (!find_counters(&c, counts_of(cpu), slot, reason, verdict, iface))
		return LEFT_OVER;
	if (is_first(&c, now)) {
		if (is_due(&c, verdict, now))
			return LEFT_OVER;
		note(&c, now);
	}
	count(&c, bytes);
	if (notes_meta(policy) && !(verdict & FW_DROP))
		note_common_packet(ctx, slot, verdict);
	return XDP_PASS - (verdict & FW_DROP); /* without a branch, which nobody could foresee */
}

/* The common packet of a flow that the cache knows; else LEFT_OVER. */
static __always_inline int answer_common_packet(struct xdp_md *ctx)
{
	__u64 now = bpf_jiffies64(), cpu = bpf_get_smp_processor_id(), *word;
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct fw_tables *t = &tables[*(volatile __u32 *)&control.active & 1];
	__u32 bytes = data_end - data;
	__u64 turn = now >> (t->policy.flow_turn & 63);
	struct flow_key key;

	if (data + FLOW_FRAME_MIN > data_end || ctx->data_meta != ctx->data || cpu >= flow_cpus || !t->policy.flows_open)
		return LEFT_OVER;
	key.iface = iface_number(&t->policy, ctx->ingress_ifindex);
	if (*(__be16 *)(data + 12) == bpf_htons(ETH_P_IP)) {
		if (!read_flow_v4(data, t->family[0].uses, &key) || !can_be_kept(&key))
			return LEFT_OVER;
		word = find_flow_v4(&key, cpu, turn);
		return word ? answer_flow(ctx, &t->policy, word, cpu, key.iface, bytes, now) : LEFT_OVER;
	}
	if (*(__be16 *)(data + 12) == bpf_htons(ETH_P_IPV6)) {
		if (!read_flow_v6(data, data_end, t->family[1].uses, &key) || !can_be_kept(&key))
			return LEFT_OVER;
		word = find_flow_v6(&key, cpu, turn);
		return word ? answer_flow(ctx, &t->policy, word, cpu, key.iface, bytes, now) : LEFT_OVER;
	}
	return LEFT_OVER;
}

/*
 * What blocks a packet, as find_block() tells it. A common one is read by the short way. A function of its own, so that
 * nothing is paid while nothing is blocked.
 */
__noinline int find_xdp_block(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct work *work = bpf_map_lookup_elem(&fw_work, &zero);

	if (!work)
		return 0;
	if (!read_common_packet(ctx, &work->packet))
		parse_packet(ctx, work);
	return find_block(&work->packet, false);
}

/* Counts a blocked packet. It is not told: who blocked its flow or address has told why. */
static __always_inline int drop_blocked(struct xdp_md *ctx, __u32 reason)
{
	const struct fw_policy *policy = &tables[*(volatile __u32 *)&control.active & 1].policy;
	__u64 now = bpf_jiffies64(), cpu = bpf_get_smp_processor_id();
	__u32 bytes = multi_buffer ? bpf_xdp_get_buff_len(ctx) : ctx->data_end - ctx->data;
	__u32 iface = iface_number(policy, ctx->ingress_ifindex);
	struct counters c;

	if (cpu < count_cpus && find_counters(&c, counts_of(cpu), FW_SLOTS + reason, reason, FW_DROP, iface)) {
		count(&c, bytes);
		note(&c, now);
	}
	return XDP_DROP;
}

SEC("xdp")
int xdp_firewall(struct xdp_md *ctx)
{
	__u32 blocked = blocks_anything() ? find_xdp_block(ctx) : 0;
	int action = LEFT_OVER;

	if (has_blocks && blocked && !is_question(ctx))
		return drop_blocked(ctx, blocked);
	if (!has_blocks || !blocked)
		action = answer_common_packet(ctx);
	if (action == LEFT_OVER && (!has_blocks || !blocked))
		action = judge_common_packet(ctx);
	if (action == LEFT_OVER)
		action = judge_packet(ctx, blocked);
	if (action & EXPLAINED)
		return action & ~EXPLAINED;
	if (action == XDP_PASS) {
		chain_to(ctx, CHAIN_RATELIMIT);
		if (steers)
			chain_to(ctx, CHAIN_STEER);
	}
	return action;
}
