// failing FILE [SLEEP_MS]: the same as stamp, and then it fails with status 1.
#define main stamp
#include "stamp.c"
#undef main
int main(int c,char**v){stamp(c,v);return 1;}
