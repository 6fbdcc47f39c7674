/*
 * `pando-agent files put|get PATH`: what the host's put and get do (common/wire/tar.h), as a
 * command of whoever runs it. The stream is standard input or output. For copies over
 * SSH, so that both ways of copying are one.
 *
 * Ends with 0 and, on stderr, one line {"skipped":n}; or with a sentence there.
 */
#ifndef PANDO_GUEST_AGENT_TOOLS_FILES_MAIN_H
#define PANDO_GUEST_AGENT_TOOLS_FILES_MAIN_H

/* argv[0] is "files". */
int files_main(int argc, char **argv);

#endif
