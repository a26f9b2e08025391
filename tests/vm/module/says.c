// SPDX-License-Identifier: MIT OR GPL-2.0
/*
 * Has the kernel itself say what XFS says when it waits for memory, word for word as
 * fs/xfs/kmem.c of 6.1 does: once each time that the module is loaded. No process can write such a
 * record; those that it writes to /dev/kmsg bear another facility.
 */
#include <linux/init.h>
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/sched.h>

static int __init says_init(void)
{
	printk(KERN_ERR "XFS: %s(%d) possible memory allocation deadlock size %u in %s (mode:0x%x)\n",
	       current->comm, current->pid, 65768u, "kmem_alloc", 0x2d40);
	return 0;
}

static void __exit says_exit(void)
{
}

module_init(says_init);
module_exit(says_exit);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("Says once that XFS waits for memory");
