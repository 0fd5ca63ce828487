// SPDX-License-Identifier: GPL-2.0-only
/*
 * clients NAME STEP... -- PROGRAM ARGUMENT...
 *
 * Starts PROGRAM, talks to it through pipes, measures. Steps, in order:
 *   -s TEXT   send a line
 *   -e TEXT   wait until it says TEXT, after what was found before
 *   -n TEXT   it must not have said TEXT between the last two of -e
 *   -r SHELL  run a command of the shell beside it, which has to succeed
 *   -t WORD   remember the time since the start or the last -t as WORD
 *   -k        kill it with SIGKILL, wait until it is reaped
 *   -w        wait until it ends by itself, with status 0
 *   -h        as many huge pages have to be free as before
 *
 * Prints "client: row=NAME WORD=nanoseconds ...", or "client: row=NAME failed: why" and the last lines the program said.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LIMIT 120ULL /* seconds for each answer */

static const char *name;
static char said[1 << 20];
static size_t length, before, searched;
static int to = -1, from = -1, pidfd;
static pid_t pid;

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

/* The last lines, without the escape sequences of a monitor's prompt. */
static void show(void)
{
	size_t i = length > 1500 ? length - 1500 : 0;

	printf("client: %s said: ", name);
	for (; i < length; i++) {
		if (said[i] == '\033') {
			while (i < length && said[i] != 'K' && said[i] != 'D' && said[i] != 'm')
				i++;
		} else if (said[i] == '\n') {
			printf("\nclient: %s said: ", name);
		} else if (said[i] != '\r') {
			putchar(said[i]);
		}
	}
	putchar('\n');
}

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
	va_list args;

	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	printf("client: row=%s failed: ", name);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	show();
	exit(1);
}

static const char *how_it_ended(int status)
{
	static char text[64];

	if (WIFSIGNALED(status))
		snprintf(text, sizeof(text), "signal %d", WTERMSIG(status));
	else
		snprintf(text, sizeof(text), "status %d", WEXITSTATUS(status));
	return text;
}

static long free_huge_pages(void)
{
	char line[128];
	long pages = -1;
	FILE *f = fopen("/proc/meminfo", "r");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "HugePages_Free: %ld", &pages) == 1)
			break;
	if (f)
		fclose(f);
	return pages;
}

static void start(char **command)
{
	int in[2], out[2];

	if (access(command[0], X_OK))
		fail("cannot start: no program %s", command[0]);
	if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC))
		fail("pipe: %s", strerror(errno));
	pid = fork();
	if (pid < 0)
		fail("fork: %s", strerror(errno));
	if (!pid) {
		dup2(in[0], 0);
		dup2(out[1], 1);
		dup2(out[1], 2);
		execv(command[0], command);
		fprintf(stderr, "%s: %s\n", command[0], strerror(errno));
		_exit(127);
	}
	close(in[0]);
	close(out[1]);
	to = in[1];
	from = out[0];
	pidfd = syscall(SYS_pidfd_open, pid, 0);
	if (pidfd < 0)
		fail("pidfd_open: %s", strerror(errno));
}

/* Keeps what the program says; false once it has ended and said all. */
static bool listen_to_it(uint64_t until, const char *what)
{
	struct pollfd fds[] = { { .fd = from, .events = POLLIN }, { .fd = pidfd, .events = POLLIN } };
	uint64_t time = now();
	ssize_t got;

	if (time > until || !poll(fds, 2, (until - time) / 1000000 + 1))
		fail("%s: nothing after %llu s", what, LIMIT);
	if (!(fds[0].revents & (POLLIN | POLLHUP)))
		return false;
	if (length > sizeof(said) - 4096) {
		memmove(said, said + searched, length - searched);
		length -= searched;
		before = 0;
		searched = 0;
	}
	got = read(from, said + length, sizeof(said) - length);
	if (got > 0)
		length += got;
	return got > 0;
}

static void expect(const char *text)
{
	uint64_t until = now() + LIMIT * 1000000000;
	char *found;
	int status;

	while (!(found = memmem(said + searched, length - searched, text, strlen(text)))) {
		if (listen_to_it(until, text))
			continue;
		waitpid(pid, &status, 0);
		pid = 0;
		fail("ended with %s before it said \"%s\"", how_it_ended(status), text);
	}
	before = searched;
	searched = found + strlen(text) - said;
}

static void reap(bool by_itself)
{
	uint64_t until = now() + LIMIT * 1000000000;
	int status;

	while (by_itself && listen_to_it(until, "waited for its end"))
		;
	if (!by_itself)
		kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	pid = 0;
	if (by_itself ? status : !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		fail("ended with %s", how_it_ended(status));
}

int main(int argc, char **argv)
{
	uint64_t last, time;
	char times[1024] = "";
	long pages = free_huge_pages();
	int option, fd, i, word = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	if (argc < 2)
		return 2;
	name = argv[1];
	for (i = 2; i < argc && strcmp(argv[i], "--"); i++)
		;
	if (i + 1 >= argc)
		return 2;

	last = now();
	start(argv + i + 1);
	optind = 2;
	while ((option = getopt(argc, argv, "+s:e:n:r:t:kwh")) != -1) {
		switch (option) {
		case 's':
			if (dprintf(to, "%s\n", optarg) < 0 && errno != EPIPE)
				fail("cannot send: %s", strerror(errno));
			break;
		case 'e':
			expect(optarg);
			break;
		case 'n':
			if (memmem(said + before, searched - before, optarg, strlen(optarg)))
				fail("said \"%s\"", optarg);
			break;
		case 'r':
			time = now();
			if (system(optarg))
				fail("\"%s\" failed beside it", optarg);
			last += now() - time;
			break;
		case 't':
			time = now();
			word += snprintf(times + word, sizeof(times) - word, " %s=%llu", optarg,
					 (unsigned long long)(time - last));
			last = now();
			break;
		case 'k':
		case 'w':
			reap(option == 'w');
			break;
		case 'h':
			if (free_huge_pages() != pages)
				fail("%ld huge pages did not come back", pages - free_huge_pages());
			break;
		default:
			fail("unknown step");
		}
	}
	if (pid)
		fail("no step ended it");
	fd = open("/dev/kmsg", O_WRONLY);
	if (fd >= 0) {
		dprintf(fd, "clients: %s done\n", name);
		close(fd);
	}
	printf("client: row=%s%s\n", name, times);
	return 0;
}
