/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Exact first match among 4096 rules of a family, at nearly flat cost. Each field of the packet leads to a row, a bit
 * for each rule; the first bit that all rows share is the rule (Lakshman and Stiliadis 1998, Baboescu and Varghese
 * 2001). In front stands a cache keyed by the rows' ids (flows.h has one more, before this): it answers for every packet
 * that falls into the same classes, so random ports and addresses cannot blow it, and it dies with its generation.
 *
 * Tables are written by the agent only (src/classify/compile), into the generation that no packet reads.
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

enum {
	SPLIT_ROWS = 7, /* of a packet, where rows could not be merged */
	FW_FEW = 8,	/* words: up to so many are compared one by one, more by lines */
};

/* The lookups of one packet: classes that do not depend on the connection's state, computed once. */
struct classes {
	__u32 src_row, dst_row;	  /* local ids */
	__u32 src_port, dst_port; /* classes */
	__u32 protocol, vlan, iface;
	__u32 cell;		  /* first cell of the state row */
	__u32 row[SPLIT_ROWS];	  /* ids of the rows, where they could not be merged */
};

/*
 * high * 256 + low, for an index: kernels before 6.10 forget the bounds of what an or of two variables gives, and clang
 * makes one of a sum when it knows that no bits meet.
 */
static __always_inline __u32 above_byte(__u32 high, __u32 low)
{
	low &= 255;
	OPAQUE(low);
	return (high << 8) + low;
}

static __always_inline __u32 lookup_ipv4(const struct fw_v4 *v4, __u32 field, __u32 address)
{
	__u32 entry = v4->top[field][address >> 16];

	if (entry & FW_BLOCK) {
		entry = v4->block[above_byte(entry & (FW_BLOCKS - 1), address >> 8)];
		if (entry & FW_BLOCK)
			entry = v4->block[above_byte(entry & (FW_BLOCKS - 1), address)];
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
	__u32 high = port >> 8, block;

	OPAQUE(high); /* the verifier does not know a port whose bytes were swapped as one before kernel 6.10 */
	block = f->port_block[field][high & 255] & 255;
	return f->port_class[field][above_byte(block, port)];
}

/*
 * Rows of a packet's addresses. One that no rule looks at is as good as any other, and 0 is in the cache: else packets
 * from everywhere would fetch all of the tables to learn nothing.
 */
static __always_inline void find_rows_v4(struct fw_tables *t, const struct packet *p, struct classes *c)
{
	__u32 uses = t->family[0].uses, src = -(uses / FW_USES_SRC & 1), dst = -(uses / FW_USES_DST & 1);

	c->src_row = lookup_ipv4(&t->v4, 0, p->src[1] & src);
	c->dst_row = lookup_ipv4(&t->v4, 1, p->dst[1] & dst);
}

static __always_inline void find_rows_v6(struct fw_tables *t, const struct packet *p, struct classes *c)
{
	__u32 uses = t->family[1].uses;
	__u64 src = -(__u64)(uses / FW_USES_SRC & 1), dst = -(__u64)(uses / FW_USES_DST & 1);

	c->src_row = lookup_ipv6(&t->v6, 0, p->src[0] & src, p->src[1] & src);
	c->dst_row = lookup_ipv6(&t->v6, 1, p->dst[0] & dst, p->dst[1] & dst);
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
	if (uses & FW_USES_ICMP && is_icmp(p->family, p->protocol))
		c->protocol = f->icmp_class[above_byte(f->icmp_block[p->icmp_type] & 255, p->icmp_code)];
	if (uses & FW_USES_FRAGMENT && p->fragment == LATER_FRAGMENT)
		c->protocol = f->frag_class[p->protocol];
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

static __always_inline const struct fw_row *row_at(void *rows, const struct fw_family *f, __u32 id)
{
	__u32 entry = f->row_base + id;

	return bpf_map_lookup_elem(rows, &entry);
}

static __always_inline const struct fw_near *near_at(void *rows, const struct fw_family *f, __u32 id)
{
	__u32 entry = f->near_base + (id >> 3);
	const struct fw_near *near = bpf_map_lookup_elem(rows, &entry);

	return near ? near + (id & 7) : NULL;
}

/*
 * First bit that three rows share, from the words in left on; FW_RULES when none. For rows with bits in many words. A
 * function of its own, verified once; src, dst and last are entries.
 */
__noinline int walk_far(__u32 index, __u32 src, __u32 dst, __u32 last, __u64 left)
{
	void *rows = bpf_map_lookup_elem(&fw_rows, &index);
	const struct fw_row *a, *b, *c;

	if (!rows)
		return FW_RULES;
	a = bpf_map_lookup_elem(rows, &src);
	b = bpf_map_lookup_elem(rows, &dst);
	c = bpf_map_lookup_elem(rows, &last);
	if (!a || !b || !c)
		return FW_RULES;
#pragma clang loop unroll(disable)
	for (int i = 0; i < FW_WORDS; i++) {
		__u32 w;
		__u64 bits;

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

/* The word of a row before which the summary has these bits; is_far is set when it does not stand beside it. */
static __always_inline __u64 near_word(const struct fw_near *row, __u64 before, bool *is_far)
{
	__u32 rank = ones(row->summary & before);

	OPAQUE(rank); /* clang knows that it is small, the verifier has to see it */
	if (rank < FW_NEAR)
		return row->word[rank];
	*is_far = true;
	return 0;
}

/* First bit that three rows share; FW_RULES when none. Mostly one of the first words decides. */
static __always_inline __u32 walk_merged(const struct fw_near *a, const struct fw_near *b, const struct fw_near *c,
					 __u32 index, __u32 base, __u32 src, __u32 dst, __u32 last)
{
	__u64 left = a->summary & b->summary & c->summary;

#pragma clang loop unroll(disable)
	for (int i = 0; i < FW_NEAR; i++) {
		__u64 before = (left & -left) - 1, bits;
		bool is_far = false;

		if (!left)
			return FW_RULES;
		bits = near_word(a, before, &is_far) & near_word(b, before, &is_far) & near_word(c, before, &is_far);
		if (is_far)
			break;
		if (bits)
			return ones(before) << 6 | lowest(bits);
		left &= left - 1;
	}
	return left ? walk_far(index, base + src, base + dst, base + last, left) : FW_RULES;
}

/* A row to build, for one packet. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct fw_row);
} fw_scratch SEC(".maps");

/*
 * What three rows share, as a row, in the lines that hold words in left; out may be one of them. This and the next are
 * for rows that could not be merged: those may have bits nearly everywhere, so it goes by lines of eight words, without
 * a branch. Functions of their own, verified once.
 */
__noinline int share_lines(struct fw_row *out, const struct fw_row *a, const struct fw_row *b, const struct fw_row *c,
			   __u64 left)
{
	if (!out || !a || !b || !c)
		return 0;
#pragma clang loop unroll(disable)
	for (__u32 line = 0; line < FW_WORDS; line += 8)
		if (left >> line & 255)
#pragma clang loop unroll(full)
			for (__u32 k = 0; k < 8; k++)
				out->word[line + k] = a->word[line + k] & b->word[line + k] & c->word[line + k];
	return 0;
}

/* First bit that three rows share in those lines; FW_RULES when none. */
__noinline int walk_lines(const struct fw_row *a, const struct fw_row *b, const struct fw_row *c, __u64 left)
{
	if (!a || !b || !c)
		return FW_RULES;
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

/* enum fw_answer of the rule at a bit. */
static __always_inline __u32 answer_of(const struct fw_family *f, __u32 bit)
{
	return bit < FW_RULES ? f->rule[bit] : FW_NO_MATCH;
}

/*
 * First bit that all rows of c share in a few words; FW_RULES when none. Addresses come first: mostly they leave one
 * rule, and the long rows of the ports are read for its word alone. A function of its own, verified once.
 */
__noinline int walk_few(const struct fw_family *f, const struct classes *c, __u32 index, __u64 left)
{
	void *rows = bpf_map_lookup_elem(&fw_rows, &index);

	if (!rows || !f || !c)
		return FW_RULES;
#pragma clang loop unroll(disable)
	for (int i = 0; i < FW_FEW; i++) {
		__u64 before = (left & -left) - 1, bits = ~0ULL;

		if (!left)
			break;
#pragma clang loop unroll(disable)
		for (__u32 k = 0; k < SPLIT_ROWS; k++) {
			const struct fw_near *near = near_at(rows, f, c->row[k]);
			const struct fw_row *row;
			bool is_far = false;

			if (!near)
				return FW_RULES;
			if (near->summary & (before + 1)) {
				__u64 word = near_word(near, before, &is_far);

				if (is_far) {
					row = row_at(rows, f, c->row[k]);
					if (row)
						word = row->word[word_at(left)];
				}
				bits &= word;
			} else {
				bits = 0;
			}
			if (!bits)
				break;
		}
		if (bits)
			return word_at(left) << 6 | lowest(bits);
		left &= left - 1;
	}
	return FW_RULES;
}

/*
 * Rows that could not be merged: no cache, every packet walks. Bounded by 64 words of 5 or 7 rows. A function of its
 * own, verified once. index is the generation, app the row that cell gave.
 */
__noinline int classify_split(struct fw_family *f, struct classes *c, __u32 index, __u32 app)
{
	void *rows = bpf_map_lookup_elem(&fw_rows, &index);
	__u64 left = ~0ULL;
	__u32 zero = 0;
	struct fw_row *shared;

	shared = bpf_map_lookup_elem(&fw_scratch, &zero);
	if (!rows || !f || !c || !shared)
		return FW_NO_MATCH;
	c->row[0] = c->src_row;
	c->row[1] = f->dst_base + c->dst_row;
	c->row[2] = c->row[5] = c->row[6] = f->app_base + app;
	c->row[3] = f->app_base + f->port_row[0][c->src_port & 16383];
	c->row[4] = f->app_base + f->port_row[1][c->dst_port & 16383];
	if (f->mode == FW_MODE_APART) {
		c->row[5] = f->app_base + f->proto_row[c->protocol & 16383];
		c->row[6] = f->app_base + f->vlan_row[c->vlan & 4095];
	}
#pragma clang loop unroll(full)
	for (int i = 0; i < 3; i++) {
		const struct fw_near *near = near_at(rows, f, c->row[i]);

		if (!near)
			return FW_NO_MATCH;
		left &= near->summary;
	}
	if (ones(left) <= FW_FEW)
		return answer_of(f, walk_few(f, c, index, left));
	share_lines(shared, row_at(rows, f, c->row[0]), row_at(rows, f, c->row[1]), row_at(rows, f, c->row[2]), left);
	if (f->mode == FW_MODE_APART)
		share_lines(shared, shared, row_at(rows, f, c->row[5]), row_at(rows, f, c->row[6]), left);
	return answer_of(f, walk_lines(shared, row_at(rows, f, c->row[3]), row_at(rows, f, c->row[4]), left));
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
	__u64 key = cache_key(src_row, dst_row, app), hash = key * 0x9e3779b97f4a7c15ULL, way;
	void *rows = bpf_map_lookup_elem(&fw_rows, &index);
	const struct fw_near *src, *dst, *last;
	__u32 answer;

	if (!rows || !f)
		return FW_NO_MATCH;
	dst_row += f->dst_base;
	app += f->app_base;
	src = near_at(rows, f, src_row);
	dst = near_at(rows, f, dst_row);
	last = near_at(rows, f, app);
	if (!src || !dst || !last)
		return FW_NO_MATCH;
	answer = answer_of(f, walk_merged(src, dst, last, index, f->row_base, src_row, dst_row, app));
	way = hash >> 40 & 1;
	OPAQUE(way); /* as in above_byte() */
	*(volatile __u64 *)&f->cache[(hash >> 48 & (FW_CACHE - 2)) + way] = key << FW_KEY_SHIFT | FW_CACHED | answer;
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
