/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Only the first fragment of a datagram has ports. Its verdict is kept here for the later ones. A later fragment whose
 * first was not seen, and everything after a second first fragment that disagrees with the first (so that the receiver
 * could put together ports that nobody judged), is not parsable and left to the caller's policy.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct frag_key);
	__type(value, struct frag);
} fragments SEC(".maps");

/* How long the rest of a datagram is waited for, in jiffies; receivers give up after 30 s (IPv4) or 60 s (IPv6). */
const volatile __u64 fragment_timeout;

static __always_inline void frag_key_of(const struct packet *p, struct frag_key *key)
{
	key->src[0] = p->src[0];
	key->src[1] = p->src[1];
	key->dst[0] = p->dst[0];
	key->dst[1] = p->dst[1];
	key->id = p->fragment_id;
	key->protocol = p->family == 4 ? p->protocol : 0;
	key->family = p->family;
	key->vlan = p->vlan;
}

static __always_inline __u64 transport_of(const struct packet *p)
{
	return (__u64)p->src_port << 48 | (__u64)p->dst_port << 32 | (__u64)p->tcp_flags << 24 |
	       (__u64)p->icmp_type << 16 | (__u64)p->icmp_code << 8 | p->protocol;
}

static __always_inline struct frag *frag_find(const struct frag_key *key)
{
	struct frag *frag = bpf_map_lookup_elem(&fragments, key);

	return frag && bpf_jiffies64() - frag->last_jiffies <= fragment_timeout ? frag : NULL;
}

/*
 * A first fragment: FW_OVERLAP_FRAGMENT when it disagrees with one that was seen before, and then for good. This and
 * the following are functions of their own, verified once: fragments are rare enough to pay for a call.
 */
__noinline int frag_first(struct packet *p, __u32 remember)
{
	struct frag_key key = {};
	struct frag *frag;

	if (!p)
		return FW_STRAY_FRAGMENT;
	frag_key_of(p, &key);
	frag = frag_find(&key);
	if (!frag || (!frag->broken && frag->transport == transport_of(p)))
		return FW_PARSED;
	if (remember)
		frag->broken = 1;
	return FW_OVERLAP_FRAGMENT;
}

/* Keeps the verdict on a first fragment. A full table costs the datagram, never a free pass: what follows are strays. */
__noinline int frag_remember(struct packet *p, __u32 generation, const struct judgement *j)
{
	struct frag_key key = {};
	struct frag frag = {};

	if (!p || !j)
		return -1;
	frag_key_of(p, &key);
	frag.generation = generation;
	frag.answer = j->answer;
	frag.reason = j->reason;
	frag.drop = j->drop;
	frag.transport = transport_of(p);
	frag.last_jiffies = bpf_jiffies64();
	return bpf_map_update_elem(&fragments, &key, &frag, BPF_ANY);
}

/* The verdict that a later fragment follows; returns FW_PARSED, or why there is none. */
__noinline int frag_later(struct packet *p, __u32 generation, struct judgement *j)
{
	struct frag_key key = {};
	struct frag *frag;

	if (!p || !j)
		return FW_STRAY_FRAGMENT;
	frag_key_of(p, &key);
	frag = frag_find(&key);
	/* Judged by older rules: its first fragment would have to be judged again, and it is gone. */
	if (!frag || frag->generation != generation)
		return FW_STRAY_FRAGMENT;
	if (frag->broken)
		return FW_OVERLAP_FRAGMENT;
	j->answer = frag->answer;
	j->reason = FW_BY_FRAGMENT;
	j->drop = frag->drop;
	return FW_PARSED;
}
