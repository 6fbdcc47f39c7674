# swarm
