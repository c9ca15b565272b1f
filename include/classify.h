/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Exact first match among 4096 rules of a family, at nearly flat cost. Each field of the packet leads to a row, a bit
 * for each rule; the first bit that all rows share is the rule (Lakshman and Stiliadis 1998, Baboescu and Varghese
 * 2001). In front stands a cache keyed by the rows' ids: it answers for every packet that falls into the same classes,
 * so random ports and addresses cannot blow it, and it dies with its generation.
 *
 * Tables are written by the agent only (src/engines/firewall/compile), into the generation that no packet reads.
 * The cache is written by all CPUs without a lock: an entry is one 64-bit word that holds key and answer.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"

/* Two generations; fw_control.active says which one is live. Mapped into the agent. */
struct fw_tables tables[2] SEC(".bss.tables");

struct rows {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct fw_row)); /* a __type would reach BTF as a forward declaration only */
};

/* The rows of both families, for each generation a map of just the size that it needs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct rows);
} fw_rows SEC(".maps");

/* The lookups of one packet: classes that do not depend on the connection's state, computed once. */
struct classes {
	__u32 src_row, dst_row;	  /* local ids */
	__u32 src_port, dst_port; /* classes */
	__u32 protocol, vlan, iface;
	__u32 cell;		  /* first cell of the state row */
};

static __always_inline __u32 lookup_ipv4(const struct fw_v4 *v4, __u32 field, __u32 address)
{
	__u32 entry = v4->top[field][address >> 16];

	if (entry & FW_BLOCK) {
		entry = v4->block[(entry & (FW_BLOCKS - 1)) << 8 | (address >> 8 & 255)];
		if (entry & FW_BLOCK)
			entry = v4->block[(entry & (FW_BLOCKS - 1)) << 8 | (address & 255)];
	}
	return entry & (FW_NET_ROWS - 1);
}

/* Ones from the top down to the bit above the highest one of x: the bits in which two words agree, given their xor. */
static __always_inline __u64 agreeing(__u64 x)
{
	x |= x >> 1;
	x |= x >> 2;
	x |= x >> 4;
	x |= x >> 8;
	x |= x >> 16;
	x |= x >> 32;
	return ~x;
}

static __always_inline __u32 ones(__u64 x)
{
	x -= x >> 1 & 0x5555555555555555ULL;
	x = (x & 0x3333333333333333ULL) + (x >> 2 & 0x3333333333333333ULL);
	x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return x * 0x0101010101010101ULL >> 56;
}

/* A function of its own, verified once. */
__noinline int lookup_ipv6(const struct fw_v6 *v6, __u32 field, __u64 high, __u64 low)
{
	const struct fw_leaf *leaf;
	__u64 x, y;
	__u32 word;

	if (!v6)
		return 0;
	word = v6->root[field & 1];

#pragma clang loop unroll(disable)
	for (int i = 0; i < FW_TRIE_STEPS; i++) {
		__u32 position, size;
		__u64 half;

		if (word >> FW_LEAF_BIT)
			break;
		position = word >> FW_TRIE_BASE_BITS & 127;
		size = word >> (FW_TRIE_BASE_BITS + FW_TRIE_POS_BITS) & 15;
		half = position & 64 ? low : high;
		/* A node always has 1 to 15 bits; the shift by 63 first keeps it defined for the verifier's 0, too. */
		half = half << (position & 63) >> 1 >> (63 - size);
		word = v6->trie[((word & ((1 << FW_TRIE_BASE_BITS) - 1)) + half) & (FW_TRIE - 1)];
	}
	word &= 16383;
	if (word >= FW_LEAVES)
		return 0;
	leaf = &v6->leaf[word];
	x = high ^ leaf->key[0];
	y = low ^ leaf->key[1];
	if (!((x & leaf->mask[0]) | (y & leaf->mask[1])))
		return leaf->row & (FW_NET_ROWS - 1);
	/* The address leaves the prefix: the longest prefix around it that ends where both still agree. */
	word = ones(leaf->lengths[0] & agreeing(x));
	if (!x)
		word += ones(leaf->lengths[1] & agreeing(y));
	return v6->chain[(leaf->chain + word) & (FW_CHAINS - 1)] & (FW_NET_ROWS - 1);
}

static __always_inline __u32 port_class(const struct fw_family *f, __u32 field, __u32 port)
{
	__u32 block = f->port_block[field][port >> 8] & 255;

	return f->port_class[field][block << 8 | (port & 255)];
}

/* All classes of a packet but its addresses, and for the merged form the first cell. */
static __always_inline void find_classes(const struct fw_family *f, const struct packet *p, __u32 iface,
					 struct classes *c)
{
	__u32 uses = f->uses;

	c->src_port = c->dst_port = c->vlan = c->iface = 0;
	if (uses & FW_USES_PORTS && p->has_ports) {
		c->src_port = port_class(f, 0, p->src_port);
		c->dst_port = port_class(f, 1, p->dst_port);
	}
	c->protocol = f->proto_class[p->protocol];
	if (uses & FW_USES_TCP_FLAGS && p->protocol == IPPROTO_TCP)
		c->protocol = f->tcp_class[p->tcp_flags];
	if (uses & FW_USES_ICMP && ((p->family == 4 && p->protocol == IPPROTO_ICMP) ||
				    (p->family == 6 && p->protocol == IPPROTO_ICMPV6)))
		c->protocol = f->icmp_class[(f->icmp_block[p->icmp_type] & 255) << 8 | p->icmp_code];
	if (uses & FW_USES_VLAN)
		c->vlan = f->vlan_class[p->vlan & 4095];
	if (uses & FW_USES_IFACE)
		c->iface = f->iface_class[iface & (FW_IFACES - 1)];

	if (f->mode == FW_MODE_APART) {
		c->cell = c->iface * f->states;
	} else {
		__u32 env = f->env[((c->protocol * f->vlans + c->vlan) * f->ifaces + c->iface) & (FW_ENVS - 1)];

		if (f->mode == FW_MODE_MERGED)
			env += f->pair[(c->src_port * f->pair_stride + c->dst_port) & (FW_PAIRS - 1)] * f->envs;
		c->cell = env * f->states;
	}
}

static __always_inline __u32 lowest(__u64 x)
{
	return ones((x & -x) - 1);
}

/* The lowest set bit of a summary. clang knows that it is below 64 and drops a mask; the verifier has to see it. */
static __always_inline __u32 word_at(__u64 summary)
{
	__u32 w = lowest(summary);

	OPAQUE(w);
	return w & (FW_WORDS - 1);
}

/*
 * A word of a row, given a mask of the words before it: from the summary's own line where it is one of the first. Without
 * a branch, which neither the packets' mix nor the verifier would like.
 */
static __always_inline __u64 near_word(const struct fw_row *row, __u64 before, __u32 w)
{
	enum { NEAR = __builtin_offsetof(struct fw_row, near) / 8, WORD = __builtin_offsetof(struct fw_row, word) / 8 };
	__u32 rank = ones(row->summary & before), is_far = (FW_NEAR - 1 - rank) >> 31;

	OPAQUE(is_far);
	w = NEAR + rank + is_far * (WORD - NEAR + w - rank);
	OPAQUE(w);
	return w < sizeof(*row) / 8 ? ((const __u64 *)row)[w] : 0;
}

/* First bit that three rows share; FW_RULES when none. Mostly the first word that all have decides. */
static __always_inline __u32 walk_merged(const struct fw_row *a, const struct fw_row *b, const struct fw_row *c)
{
	__u64 left = a->summary & b->summary & c->summary, before, bits;
	__u32 w;

	if (!left)
		return FW_RULES;
	before = (left & -left) - 1;
	w = ones(before);
	OPAQUE(w);
	w &= FW_WORDS - 1;
	bits = near_word(a, before, w) & near_word(b, before, w) & near_word(c, before, w);
	if (bits)
		return w << 6 | lowest(bits);
	left &= left - 1;
#pragma clang loop unroll(disable)
	for (int i = 1; i < FW_WORDS; i++) {
		if (!left)
			break;
		w = word_at(left);
		bits = a->word[w] & b->word[w] & c->word[w];
		if (bits)
			return w << 6 | lowest(bits);
		left &= left - 1;
	}
	return FW_RULES;
}

/* A row to build, for one packet. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fw_row);
} fw_scratch SEC(".maps");

/*
 * What three rows share, as a row; out may be one of them, and has a summary that says where it matters. This and the
 * next are for rows that could not be merged: those may have bits nearly everywhere, so it goes by lines of eight
 * words, without a branch. Functions of their own, verified once.
 */
__noinline int share_lines(struct fw_row *out, const struct fw_row *a, const struct fw_row *b, const struct fw_row *c)
{
	__u64 left;

	if (!out || !a || !b || !c)
		return 0;
	left = out->summary;
#pragma clang loop unroll(disable)
	for (__u32 line = 0; line < FW_WORDS; line += 8)
		if (left >> line & 255)
#pragma clang loop unroll(full)
			for (__u32 k = 0; k < 8; k++)
				out->word[line + k] = a->word[line + k] & b->word[line + k] & c->word[line + k];
	return 0;
}

/* First bit that three rows share, of which the first has a summary that is true for all; FW_RULES when none. */
__noinline int walk_lines(const struct fw_row *a, const struct fw_row *b, const struct fw_row *c)
{
	__u64 left;

	if (!a || !b || !c)
		return FW_RULES;
	left = a->summary;
#pragma clang loop unroll(disable)
	for (__u32 line = 0; line < FW_WORDS; line += 8) {
		__u64 any = 0;

		if (!(left >> line & 255))
			continue;
#pragma clang loop unroll(full)
		for (__u32 k = 0; k < 8; k++)
			any |= a->word[line + k] & b->word[line + k] & c->word[line + k];
		if (!any)
			continue;
#pragma clang loop unroll(disable)
		for (__u32 w = line; w < line + 8; w++) {
			__u64 bits = a->word[w] & b->word[w] & c->word[w];

			if (bits)
				return w << 6 | lowest(bits);
		}
	}
	return FW_RULES;
}

static __always_inline const struct fw_row *row_at(void *rows, __u32 id)
{
	return bpf_map_lookup_elem(rows, &id);
}

/* enum fw_answer of the rule at a bit. */
static __always_inline __u32 answer_of(const struct fw_family *f, __u32 bit)
{
	return bit < FW_RULES ? f->rule[bit] : FW_NO_MATCH;
}

/*
 * Rows that could not be merged: no cache, every packet walks. Bounded by 64 words of 5 or 7 rows. A function of its
 * own, verified once. index is the generation, app the row that cell gave.
 */
__noinline int classify_split(struct fw_family *f, struct classes *c, __u32 index, __u32 app)
{
	const struct fw_row *src, *dst, *last, *sport, *dport;
	void *rows = bpf_map_lookup_elem(&fw_rows, &index);
	struct fw_row *shared;
	__u32 zero = 0;

	shared = bpf_map_lookup_elem(&fw_scratch, &zero);
	if (!rows || !f || !c || !shared)
		return FW_NO_MATCH;
	src = row_at(rows, f->src_base + c->src_row);
	dst = row_at(rows, f->dst_base + c->dst_row);
	last = row_at(rows, f->app_base + app);
	sport = row_at(rows, f->app_base + f->port_row[0][c->src_port & 16383]);
	dport = row_at(rows, f->app_base + f->port_row[1][c->dst_port & 16383]);
	if (!src || !dst || !last || !sport || !dport)
		return FW_NO_MATCH;
	/* The summaries of all rows first: their lines come from memory side by side, and may already say no. */
	shared->summary = src->summary & dst->summary & last->summary & sport->summary & dport->summary;
	if (!shared->summary)
		return FW_NO_MATCH;
	share_lines(shared, src, dst, last);
	if (f->mode == FW_MODE_APART) {
		const struct fw_row *protocol = row_at(rows, f->app_base + f->proto_row[c->protocol & 16383]);
		const struct fw_row *vlan = row_at(rows, f->app_base + f->vlan_row[c->vlan & 4095]);

		share_lines(shared, shared, protocol, vlan);
	}
	return answer_of(f, walk_lines(shared, sport, dport));
}

static __always_inline __u64 cache_key(__u32 src_row, __u32 dst_row, __u32 app)
{
	return ((__u64)src_row << 13 | dst_row) << 15 | app;
}

/* FW_CACHED | enum fw_answer, or 0. */
static __always_inline __u32 cache_lookup(const struct fw_family *f, __u64 key)
{
	__u64 hash = key * 0x9e3779b97f4a7c15ULL;
	const __u64 *set = &f->cache[hash >> 48 & (FW_CACHE - 2)];
	__u64 first = *(volatile const __u64 *)set, second = *(volatile const __u64 *)(set + 1);

	if (second >> FW_KEY_SHIFT == key && second & FW_CACHED)
		first = second;
	return first >> FW_KEY_SHIFT == key ? first & (FW_CACHED | (FW_CACHED - 1)) : 0;
}

/* Walks the rows of the merged form, and keeps the answer. A function of its own, verified once. */
__noinline int classify_rows(struct fw_family *f, __u32 index, __u32 src_row, __u32 dst_row, __u32 app)
{
	__u64 key = cache_key(src_row, dst_row, app), hash = key * 0x9e3779b97f4a7c15ULL;
	void *rows = bpf_map_lookup_elem(&fw_rows, &index);
	const struct fw_row *src, *dst, *last;
	__u32 answer;

	if (!rows || !f)
		return FW_NO_MATCH;
	src = row_at(rows, f->src_base + src_row);
	dst = row_at(rows, f->dst_base + dst_row);
	last = row_at(rows, f->app_base + app);
	if (!src || !dst || !last)
		return FW_NO_MATCH;
	answer = answer_of(f, walk_merged(src, dst, last));
	*(volatile __u64 *)&f->cache[(hash >> 48 & (FW_CACHE - 2)) + (hash >> 40 & 1)] =
		key << FW_KEY_SHIFT | FW_CACHED | answer;
	return answer;
}

/*
 * The answer to a packet whose classes are known. state is 0 while none was looked up: then a rule that asks for one
 * counts as matching and its answer has FW_STATEFUL; else 1 + enum fw_state. index is the generation.
 */
static __always_inline __u32 classify(struct fw_family *f, struct classes *c, __u32 index, __u32 state)
{
	__u32 app = f->cell[(c->cell + state) & (FW_CELLS - 1)] & (FW_APP_ROWS - 1);
	__u32 answer;

	if (f->mode != FW_MODE_MERGED)
		return classify_split(f, c, index, app);
	answer = cache_lookup(f, cache_key(c->src_row, c->dst_row, app));
	if (answer & FW_CACHED)
		return answer & (FW_CACHED - 1);
	return classify_rows(f, index, c->src_row, c->dst_row, app);
}
