/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Records for the agent. A rule that tells (log = true) records each packet; any other drop, and in alert mode any
 * packet that would have been dropped, is told once a second, CPU and rule, with the number of packets that it stands
 * for: a flood costs its victims no records. Every record is written whole. What finds no room is counted.
 */
#pragma once
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "counts.h"
#include "stats.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 * 1024 * 1024);
} fw_events SEC(".maps");

/* Jiffies between two records of one rule on one CPU. */
const volatile __u32 tell_interval;

/* Whether a packet that does not pass has to be recorded for its rule or reason. */
static __always_inline bool is_due(const struct counters *c, __u32 verdict, __u32 now)
{
	return verdict != FW_PASS && now - c->note->told_jiffies >= tell_interval;
}

/* Room for a record, which the caller writes whole; NULL, and counted, when there is none. */
static __always_inline struct fw_event *new_event(void)
{
	struct fw_event *event = bpf_ringbuf_reserve(&fw_events, sizeof(*event), 0);
	struct fw_misc_count *count = misc_count();

	if (count) {
		if (event)
			count->events++;
		else
			count->ring_full++;
	}
	return event;
}

/* The agent looks every millisecond, so no record wakes it: a wake-up costs more than a verdict. */
static __always_inline void submit_event(struct fw_event *event)
{
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}
