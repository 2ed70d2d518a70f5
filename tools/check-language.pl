#!/usr/bin/perl
# check-language.pl [--list] [PATH...]: counts, per 1,000 words of Rust comments and Markdown prose,
# the forms that docs/STYLE.md rules out, in the tracked files under each PATH (default: all), and
# fails if a rate is above its limit. With --list it prints each place. `make lint` calls it.
#
#   clause subjects  sentences that begin with what, whatever, who, whoever or whose; questions
#                    are not counted
#   persons          nobody, somebody, anybody, everybody, whoever
#   speech           told, tells, said, says, heard, hears, asks, asked
#
# Code in backquotes, fenced code and generated blocks (`<!-- begin NAME -->` to `<!-- end NAME -->`)
# do not count.
use strict;
use warnings;
use open qw(:std :encoding(UTF-8));
use FindBin;

my @forms = (
    [
        'clause subjects', 0.3,
        qr/(?:^|[.!?]["')*]*\s+)["'(*]*(?:what|whatever|who|whoever|whose)\b(?![^.!?]*\?)/i,
    ],
    ['persons', 0.2, qr/\b(?:nobody|somebody|anybody|everybody|whoever)\b/i],
    ['speech', 0.5, qr/\b(?:told|tells|said|says|heard|hears|asks|asked)\b/i],
);

my $list = @ARGV && $ARGV[0] eq '--list' ? shift : 0;
chdir "$FindBin::Bin/.." or die "check-language: $FindBin::Bin/..: $!\n";
open my $files, '-|', 'git', 'ls-files', '--', @ARGV or die "check-language: git: $!\n";
chomp(my @files = grep { /\.(?:rs|md)$/ } <$files>);

my $words = 0;
my @counts = (0) x @forms;

for my $file (@files) {
    open my $source, '<', $file or next;
    my ($fence, $generated, $text, @starts) = (0, 0, '');
    while (<$source>) {
        chomp;
        my $line = $_;
        my $marker = '';
        if ($file =~ /\.rs$/) {
            $line = $line =~ m{^\s*(//[/!]?)\s?(.*)} ? do { $marker = $1; $2 }
                  : $line =~ m{\s//\s([^"]*)$} ? $1 : undef;
        }
        my $break = !defined $line || $line =~ /^\s*$|^\s*[-*+#>|]|^\s*\d+[.)]\s|^\s*```|^<!--/;
        if ($break) { judge($file, $text, @starts); ($text, @starts) = ('') }
        if (!defined $line) { $fence = 0; next }
        if ($line =~ /^\s*(?:```|~~~)/) { $fence = !$fence; next }
        if ($line =~ /^<!-- begin /) { $generated = 1 }
        if ($line =~ /^<!-- end /) { $generated = 0 }
        next if $fence || $generated || $line =~ /^<!--/;
        my $heading = $line =~ /^\s*#/;
        $line =~ s/^\s*(?:[-*+#>]+|\d+[.)])\s+//;
        # Cells of a table are sentences of their own.
        $line =~ s/\s*\|\s*/. /g if $line =~ /^\s*\|/;
        push @starts, [length $text, $.];
        $text .= "$line ";
        if ($heading) { judge($file, $text, @starts); ($text, @starts) = ('') }
    }
    judge($file, $text, @starts);
}

# Counts in one paragraph; @starts holds the offset and number of each of its lines.
sub judge {
    my ($file, $text, @starts) = @_;
    my $original = $text;
    # Code stands for a noun; offsets stay.
    $text =~ s/(`+)(.*?)\1/'`' x length($&)/ge;
    $words++ while $text =~ /[A-Za-z][A-Za-z'’-]*/g;
    for my $form (0 .. $#forms) {
        while ($text =~ /$forms[$form][2]/g) {
            $counts[$form]++;
            next unless $list;
            my ($line) = map { $_->[1] } grep { $_->[0] < $+[0] } reverse @starts;
            my $from = $-[0] > 30 ? $-[0] - 30 : 0;
            my $excerpt = substr($original, $from, 90);
            printf "%s:%d: %s: ...%s...\n", $file, $line, $forms[$form][0], $excerpt;
        }
    }
}

my $failed = 0;
for my $form (0 .. $#forms) {
    my ($name, $limit) = @{$forms[$form]};
    my $rate = $words ? $counts[$form] * 1000 / $words : 0;
    my $verdict = $rate > $limit ? 'too many' : 'ok';
    $failed ||= $rate > $limit;
    printf "%-16s %5d in %d words: %4.2f per 1,000, at most %.1f: %s\n",
        $name, $counts[$form], $words, $rate, $limit, $verdict;
}
exit $failed;
