/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What verdicts were given: exact, by rule or reason and by interface, written by xdp_firewall, mapped into the agent.
 * In one piece for each CPU: a per-CPU array would cost one more cache line for each counter, its pointer; and a variable,
 * not an array's entries: a lookup costs a call's registers.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "parse.h"

/* How many CPUs may ever be there. The agent makes room for the counters of all before it loads the program. */
const volatile __u32 count_cpus = 1;

struct fw_cpu_counts cpu_counts[1] SEC(".bss.counts");

/* Where a packet is counted. */
struct counters {
	struct fw_rule_count *rule;
	struct fw_rule_note *note;
	struct fw_iface_count *iface;
	__u32 cell; /* of the interface's */
};

/* Those of a CPU, which is below count_cpus. */
static __always_inline struct fw_cpu_counts *counts_of(__u64 cpu)
{
	struct fw_cpu_counts *counts = cpu_counts;

	OPAQUE(counts); /* clang believes that there is one */
	return counts + cpu;
}

/* Finds the counters of a slot (FW_SLOTS + reason where no rule decided), or returns false: there are none such. */
static __always_inline bool find_counters(struct counters *c, struct fw_cpu_counts *counts, __u32 slot, __u32 reason,
					  __u32 verdict, __u32 iface)
{
	__u32 cell = reason * FW_VERDICTS + verdict;

	OPAQUE(slot); /* clang knows that they are small, the verifier has to see it */
	OPAQUE(cell);
	if (slot >= FW_RULE_COUNTS || cell >= FW_VERDICT_COUNTS)
		return false;
	c->rule = &counts->rule[slot];
	c->note = &counts->note[slot];
	c->iface = &counts->iface[iface & (FW_IFACES - 1)];
	c->cell = cell;
	return true;
}

static __always_inline void count(const struct counters *c, __u32 bytes)
{
	c->rule->packets += FW_PACKET;
	c->rule->bytes += bytes;
	c->iface->packets[c->cell]++;
	c->iface->bytes[c->cell] += bytes;
}

/* Whether the rule had no packet in this while so far. */
static __always_inline bool is_first(const struct counters *c, __u64 now)
{
	return (c->rule->packets ^ now >> FW_WHILE_SHIFT) & (FW_PACKET - 1);
}

static __always_inline void note(const struct counters *c, __u64 now)
{
	c->rule->packets = (c->rule->packets & ~(FW_PACKET - 1ULL)) | (now >> FW_WHILE_SHIFT & (FW_PACKET - 1));
	c->note->last_jiffies = now;
}
