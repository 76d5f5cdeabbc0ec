// floor STAMP FILE COUNT [SLEEP_MS]: runs `STAMP FILE [SLEEP_MS]` COUNT times with posix_spawn and waitpid, back to back. The gaps
// in FILE are what the kernel and the C library alone need from the end of one process to the start of the next.
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

extern char **environ;

int main(int argc, char **argv) {
  if (argc != 4 && argc != 5) {
    fprintf(stderr, "usage: floor STAMP FILE COUNT [SLEEP_MS]\n");
    return 2;
  }
  char *job[] = {argv[1], argv[2], argv[4], NULL};
  for (int left = atoi(argv[3]); left > 0; left--) {
    pid_t child;
    int status, error = posix_spawn(&child, argv[1], NULL, NULL, job, environ);
    if (error) {
      fprintf(stderr, "floor: posix_spawn %s: %s\n", argv[1], strerror(error));
      return 1;
    }
    if (waitpid(child, &status, 0) != child || status != 0) {
      fprintf(stderr, "floor: %s did not end well\n", argv[1]);
      return 1;
    }
  }
  return 0;
}
